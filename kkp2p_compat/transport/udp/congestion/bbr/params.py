"""The numbers of BBR.  Times in seconds; a gain multiplies a rate or a volume."""

from __future__ import annotations

# draft-ietf-ccwg-bbr, with the name it has there.
STARTUP_PACING_GAIN = 2.77  # StartupPacingGain: the least that doubles the rate each round
DRAIN_PACING_GAIN = 0.5  # DrainPacingGain
DOWN_PACING_GAIN = 0.90  # ProbeBW_DOWN
UP_PACING_GAIN = 1.25  # ProbeBW_UP
WINDOW_GAIN = 2.0  # DefaultCwndGain
UP_WINDOW_GAIN = 2.25  # ProbeBW_UP
PROBE_RTT_WINDOW_GAIN = 0.5  # ProbeRTTCwndGain
PACING_MARGIN = 0.99  # PacingMarginPercent = 1
LOSS_THRESHOLD = 0.02  # LossThresh, of what was in flight
STARTUP_LOSS_RUNS = 6  # BBRStartupFullLossCnt: runs of lost packets in a round
BETA = 0.7  # Beta: what is left of a bound after a round of loss
HEADROOM = 0.15  # Headroom: of the long-term bound, left to others
MIN_WINDOW_PACKETS = 4  # MinPipeCwnd
FULL_BW_GROWTH = 1.25  # the rate still grows, if it grows by this much in a round
FULL_BW_ROUNDS = 3  # rounds without growth after which the pipe is full
MIN_RTT_WINDOW_S = 10.0  # MinRTTFilterLen
PROBE_RTT_INTERVAL_S = 5.0  # ProbeRTTInterval
PROBE_RTT_S = 0.2  # ProbeRTTDuration
EXTRA_ACKED_ROUNDS = 10  # ExtraAckedFilterLen
DRAIN_ROUNDS = 3  # CheckDrainDone: leave Drain after this many rounds at the latest
PROBE_WAIT_S = (2.0, 3.0)  # T_bbr: the time between two probes for bandwidth, drawn at random
RENO_ROUNDS = 63  # T_reno_bound
MAX_UP_ROUNDS = 30  # RaiseInflightLongtermSlope
OFFLOAD_QUANTA = 3  # TCP Offload Budget: one being sent, one on the link, one being acknowledged
FIRST_RTT_S = 0.001  # InitPacingRate, while there is no round trip

# Our choices.  The reasons are with the code that uses them.
QUEUE_RTT = 1 / 8  # a queue shows when a round trip is longer than the smallest by this share
QUEUE_S = 0.002  # and by this much: below it, batches and timers hide it
BLIND_LOSS_THRESHOLD = 0.10  # instead of LOSS_THRESHOLD, when no queue shows
MAX_AMBIENT_LOSS = 0.20  # more is no accident, even if no queue shows: a policer drops it
AMBIENT_PACKETS = 1000  # the ambient loss rate is an average over as many packets
AMBIENT_ROUNDS = 10  # and rounds
AMBIENT_DEVIATIONS = 2.0  # random loss varies by so many standard deviations
MIN_RTT_SLACK = 1 / 32  # a round trip longer by less than this share still shows an empty queue
