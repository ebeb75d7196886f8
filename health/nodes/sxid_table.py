"""What is known about each SXid (an NVSwitch error), one row a code.

Row: (code, name in our own words, action when the log line does not say how bad it was, gpud's).

The driver prints "Fatal" or "Non-fatal" on most lines and that word wins: fatal evicts, non-fatal
is watched. The action here is for a bare code:
  E  always fatal.
  D  fatal in some circumstances.
  W  never fatal; errors that were corrected.

Source: leptonai/gpud@4a8de33, its NVSwitch list (the fatality classes are those of NVIDIA's Fabric
Manager guide). gpud reboots for 11004, 12028 and 19084 although it lists them as never fatal: they
are watched here, because the fabric goes on after them and a fatal one says so on its line.
"""

from __future__ import annotations

from .verdicts import Action

I, W, D, E = Action.IGNORE, Action.WATCH, Action.DRAIN, Action.EVICT  # noqa: E741

SxidRow = tuple[int, str, Action, str]

# fmt: off
SXIDS: tuple[SxidRow, ...] = (
    (10001, "host interface: privilege error", W, "warn"),
    (10002, "host interface: privilege timeout", W, "warn"),
    (10003, "host interface: unhandled interrupt", E, "warn"),
    (10004, "host interface: thermal event began", D, "warn"),
    (10005, "host interface: thermal event ended", I, "warn"),
    (11001, "ingress: invalid command", D, "reboot+inspect"),
    (11004, "ingress: access list refused a packet", W, "reboot"),
    (11009, "ingress: invalid virtual-channel set", D, "reboot+inspect"),
    (11012, "ingress: single-bit ECC error, corrected", W, "warn"),
    (11013, "ingress: double-bit ECC error", D, "reboot+inspect"),
    (11018, "ingress: double-bit ECC error", D, "reboot+inspect"),
    (11019, "ingress: double-bit ECC error", D, "reboot+inspect"),
    (11020, "ingress: parity error", D, "reboot+inspect"),
    (11021, "ingress: single-bit ECC error, corrected", W, "warn"),
    (11022, "ingress: single-bit ECC error, corrected", W, "warn"),
    (11023, "ingress: single-bit ECC error, corrected", W, "warn"),
    (12001, "egress: crossbar overflow", D, "reboot+inspect"),
    (12002, "egress: packet routed wrongly", D, "reboot+inspect"),
    (12020, "egress: sequence number error", E, "reboot+inspect"),
    (12021, "egress: single-bit ECC error, corrected", W, "warn"),
    (12022, "egress: double-bit ECC error", D, "reboot+inspect"),
    (12023, "egress: single-bit ECC error, corrected", W, "warn"),
    (12024, "egress: double-bit ECC error", D, "reboot+inspect"),
    (12025, "egress: credit overflow", D, "reboot+inspect"),
    (12026, "egress: wrong destination of a request", D, "reboot+inspect"),
    (12027, "egress: wrong destination of a response", D, "reboot+inspect"),
    (12028, "egress: privilege error on a non-posted write", W, "reboot"),
    (12030, "egress: parity error", D, "warn"),
    (12031, "egress: credit parity error", D, "reboot+inspect"),
    (12032, "egress: flit type mismatch", D, "reboot+inspect"),
    (14017, "timestamp unit: atomic timed out", D, "reboot+inspect"),
    (15001, "routing: buffer over- or underflow", D, "reboot+inspect"),
    (15006, "routing: completion over- or underflow", D, "reboot+inspect"),
    (15008, "routing: single-bit ECC error, corrected", W, "warn"),
    (15009, "routing: double-bit ECC error", D, "reboot+inspect"),
    (15010, "routing: parity error", D, "reboot+inspect"),
    (15011, "routing: single-bit ECC error, corrected", W, "warn"),
    (15012, "routing: double-bit ECC error", D, "reboot+inspect"),
    (15013, "routing: credit parity error", D, "reboot+inspect"),
    (19047, "memory and crossbar: double-bit ECC error", D, "reboot+inspect"),
    (19048, "memory and crossbar: double-bit ECC error", D, "reboot+inspect"),
    (19049, "memory and crossbar: single-bit ECC error, corrected", W, "warn"),
    (19054, "memory and crossbar: double-bit ECC error", D, "reboot+inspect"),
    (19055, "memory and crossbar: single-bit ECC error, corrected", W, "warn"),
    (19056, "memory and crossbar: double-bit ECC error", D, "reboot+inspect"),
    (19057, "memory and crossbar: single-bit ECC error, corrected", W, "warn"),
    (19058, "memory and crossbar: double-bit ECC error", D, "reboot+inspect"),
    (19059, "memory and crossbar: single-bit ECC error, corrected", W, "warn"),
    (19060, "memory and crossbar: double-bit ECC error", D, "reboot+inspect"),
    (19061, "memory and crossbar: double-bit ECC error", D, "reboot+inspect"),
    (19062, "memory and crossbar: single-bit ECC error, corrected", W, "warn"),
    (19063, "memory and crossbar: double-bit ECC error", D, "reboot+inspect"),
    (19064, "memory and crossbar: double-bit ECC error", D, "reboot+inspect"),
    (19065, "memory and crossbar: single-bit ECC error, corrected", W, "warn"),
    (19066, "memory and crossbar: double-bit ECC error", D, "reboot+inspect"),
    (19067, "memory and crossbar: double-bit ECC error", D, "reboot+inspect"),
    (19068, "memory and crossbar: single-bit ECC error, corrected", W, "warn"),
    (19069, "memory and crossbar: double-bit ECC error", D, "reboot+inspect"),
    (19070, "memory and crossbar: double-bit ECC error", D, "reboot+inspect"),
    (19071, "memory and crossbar: single-bit ECC error, corrected", W, "warn"),
    (19084, "memory and crossbar: heartbeat timed out", W, "reboot"),
    (20001, "link training: packets were sent again", W, "warn"),
    (20009, "link training: receive errors over a short window", W, "warn"),
    (20012, "link training: link is broken or inconsistent", W, "warn"),
    (20034, "link training: link state machine fault", D, "reboot+inspect"),
    (22003, "link microcontroller: halted", E, "reboot+inspect"),
    (22011, "link microcontroller: external error", E, "reboot+inspect"),
    (22012, "link microcontroller: link not available", D, "reboot+inspect"),
    (22013, "link microcontroller: link request interrupt", W, "warn"),
    (23001, "port buffers: source buffer overflow", E, "reboot+inspect"),
    (23002, "port buffers: source buffer underflow", E, "reboot+inspect"),
    (23003, "port buffers: destination credit overflow", E, "reboot+inspect"),
    (23004, "port buffers: destination credit underflow", E, "reboot+inspect"),
    (23005, "port buffers: packet burst error", E, "reboot+inspect"),
    (23006, "port buffers: packet sticky error", E, "reboot+inspect"),
    (23007, "port buffers: bubbles in the stream", E, "reboot+inspect"),
    (23008, "port buffers: invalid destination", E, "reboot+inspect"),
    (23009, "port buffers: parity error", E, "reboot+inspect"),
    (23010, "port buffers: source buffer overflow", E, "reboot+inspect"),
    (23011, "port buffers: source buffer underflow", E, "reboot+inspect"),
    (23012, "port buffers: destination credit overflow", E, "reboot+inspect"),
    (23013, "port buffers: destination credit underflow", E, "reboot+inspect"),
    (23014, "port buffers: packet burst error", E, "reboot+inspect"),
    (23015, "port buffers: packet sticky error", E, "reboot+inspect"),
    (23016, "port buffers: bubbles in the stream", E, "reboot+inspect"),
    (23017, "port buffers: credit parity error", E, "reboot+inspect"),
    (24001, "source tracking: single-bit ECC error, corrected", W, "warn"),
    (24002, "source tracking: single-bit ECC error, corrected", W, "warn"),
    (24003, "source tracking: single-bit ECC error, corrected", W, "warn"),
    (24004, "source tracking: double-bit ECC error", D, "reboot+inspect"),
    (24005, "source tracking: double-bit ECC error", D, "reboot+inspect"),
    (24006, "source tracking: double-bit ECC error", D, "reboot+inspect"),
    (24007, "source tracking: entry timed out", D, "reboot+inspect"),
)
# fmt: on
