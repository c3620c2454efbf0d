"""What the two sides of a call tell each other: texts, and the keys made of them.

offer.py         the texts of offer and answer, made and parsed
direct_offer.py  their "direct" part: how one side can be met directly
own_side.py      our side of one call
keys.py          the keys that the two texts lead to
identity.py      our own key, and the proofs of who the two sides are
known_peers.py   the file of the peers whose keys we know
trickle.py       what the two tell each other after that
"""
