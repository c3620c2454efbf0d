"""What an engine lives in.

thread.py           its native thread with a gevent hub, and the one way into it
callbacks.py        the application's callbacks, on threads of their own
log.py              where the log goes: a file for each engine, or a callback for all
log_file.py         kkp2p_engine.log
shares.py           what one caller may have of the room for all
timeline.py         what happened in one attempt to reach a peer, and when
engine_settings.py  what its behaviour in time depends on, beyond engine_conf_t
"""
