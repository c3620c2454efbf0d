"""Prints a line when this host's addresses or default routes change, until its input ends."""

from __future__ import annotations

import logging
import sys

from gevent.fileobject import FileObject

from kkp2p_compat.traversal.address_watch import AddressWatch, look

watch = AddressWatch(lambda: print("changed", look(), flush=True), logging.getLogger())
watch.start()
print("watching", look(), flush=True)
FileObject(sys.stdin, close=False).readline()
watch.close()
print("closed", flush=True)
