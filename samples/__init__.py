"""The document's programs in Python; `kkp2p demo` runs them as kkp2p_compat.samples."""
