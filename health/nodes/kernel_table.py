"""What kernel messages mean for a training node: one row a message, most specific first.

Row: (component, failure label, action, blame, name, pattern). The patterns know the shape of the
message, not its prefix: a line may come from dmesg, the journal, syslog or a quoting report, so
they look anywhere in it. The group "dev" is the device, port, disk or process concerned.

Written from the message formats of the Linux kernel (drivers/pci/pcie/aer.c, mm/oom_kill.c,
kernel/hung_task.c, kernel/watchdog.c, drivers/nvme/host, drivers/net/ethernet/mellanox/mlx5,
fs/ext4, fs/xfs, net/sunrpc, drivers/md, arch/x86/kernel/cpu/mce), of NVIDIA's driver (NVRM,
nvidia-nvswitch, nvidia-peermem), of Lustre and of kubelet. XID and SXid lines are read by
kernel_log itself.
"""

from __future__ import annotations

from typing import NamedTuple

from . import labels as lb
from .verdicts import Action, Blame

W, D, E = Action.WATCH, Action.DRAIN, Action.EVICT
NODE, NET, DISK, CODE, OPEN = (
    Blame.NODE,
    Blame.NETWORK,
    Blame.STORAGE,
    Blame.CODE,
    Blame.UNKNOWN,
)


class KernelRow(NamedTuple):
    """One kind of kernel message; see the module docstring."""

    component: str
    label: str
    action: Action
    blame: Blame
    name: str
    pattern: str


_Row = KernelRow

# fmt: off
ROWS: tuple[KernelRow, ...] = (
    # GPU and its driver
    _Row("gpu", lb.GPU_FELL_OFF_BUS, E, NODE, "GPU fell off the bus",
         r"NVRM:.*fallen off the bus"),
    _Row("gpu", lb.GPU_DRIVER_INIT, E, NODE, "GPU failed to initialise",
         r"NVRM:.*\b(?:RmInitAdapter|rm_init_adapter) failed"),
    _Row("gpu", lb.GPU_DRIVER_INIT, E, NODE, "GPU failed to initialise",
         r"NVRM:.*(?:Cannot attach gpu|failed to copy vbios|GSP (?:firmware|FW) .*fail)"),
    _Row("gpu", lb.GPU_DRIVER_INIT, E, NODE, "driver and library differ",
         r"NVRM:.*API mismatch"),
    _Row("gpu", lb.GPU_DRIVER_INIT, E, NODE, "driver found no GPU",
         r"NVRM:.*(?:No NVIDIA (?:GPU|graphics)|probe routine (?:failed|was not called))"),
    _Row("nvlink", lb.NVLINK, D, NODE, "NVLink state update failed",
         r"NVRM:\s*knvlink\w*:.*[Ff]ail"),
    _Row("nvlink", lb.NVLINK, D, NODE, "NVLink error",
         r"NVRM:.*NVLink.*(?:fatal|degraded|training (?:failed|error)|is down)"),
    _Row("nvswitch", lb.NVLINK, D, NODE, "NVSwitch error",
         r"nvidia-nvswitch\d+:(?!.*SXid).*(?:\bfatal\b|failed to initiali[sz]e|access blocked)"),
    _Row("gpu_peermem", lb.UNKNOWN, W, OPEN, "peer memory callback without a context",
         r"nvidia[-_]peermem\b.*(?:ERROR|invalid context)"),
    # PCIe
    _Row("pcie", lb.UNKNOWN, E, NODE, "PCIe uncorrectable error, fatal",
         r"PCIe Bus Error: severity=Uncorrect\w+ \(Fatal\)"),
    _Row("pcie", lb.UNKNOWN, D, NODE, "PCIe uncorrectable error",
         r"PCIe Bus Error: severity=Uncorrect"),
    _Row("pcie", lb.UNKNOWN, E, NODE, "PCIe uncorrectable error, fatal",
         r"AER:.*Uncorrect\w+ \(Fatal\) error (?:message )?received"),
    _Row("pcie", lb.UNKNOWN, D, NODE, "PCIe uncorrectable error",
         r"AER:.*Uncorrect\w+ .*error (?:message )?received"),
    _Row("pcie", lb.UNKNOWN, W, NODE, "PCIe corrected error",
         r"(?:PCIe Bus Error: severity=Corrected|AER:.*Corrected error (?:message )?received)"),
    _Row("pcie", lb.UNKNOWN, E, NODE, "PCIe port contained an error",
         r"\bDPC: (?:containment event|unmasked uncorrectable)"),
    _Row("pcie", lb.UNKNOWN, E, NODE, "PCIe card went away",
         r"pciehp:? Slot\((?P<dev>[^)]*)\): (?:Link Down|Card not present)"),
    _Row("pcie", lb.UNKNOWN, E, NODE, "PCIe device does not answer",
         r"(?:can't change power state from D3cold|device not ready.*giving up)"),
    # CPU and memory of the host
    _Row("host_mce", lb.UNKNOWN, E, NODE, "machine check, uncorrected",
         r"Machine check exception|mce:.*(?:Uncorrected|Fatal machine check)"),
    _Row("host_mce", lb.UNKNOWN, D, NODE, "hardware error reported by firmware",
         r"\[Hardware Error\]:.*event severity: (?:fatal|recoverable)"),
    _Row("host_mce", lb.UNKNOWN, E, NODE, "host memory, uncorrectable",
         r"EDAC \S+: \d+ UE\b"),
    _Row("host_mce", lb.UNKNOWN, D, NODE, "host memory page lost",
         r"Memory failure: 0x[0-9a-f]+: .*(?:Failed|Ignored|Killing)|"
         r"Uncorrected hardware memory error"),
    _Row("host_mce", lb.UNKNOWN, W, NODE, "host hardware error, corrected",
         r"EDAC \S+: \d+ CE\b|Machine check events logged|"
         r"\[Hardware Error\]:.*(?:severity: corrected|Corrected error)"),
    _Row("host_thermal", lb.UNKNOWN, E, NODE, "host too hot",
         r"critical temperature reached|thermal.*shutting down"),
    _Row("host_thermal", lb.UNKNOWN, W, NODE, "host CPU throttled",
         r"temperature above threshold,? *cpu clock throttled|(?:Core|"
         r"Package) temperature above threshold"),
    # stuck or dead kernels
    _Row("host_kernel_panic", lb.HOST_HANG, E, NODE, "kernel panic over a hung task",
         r"kernel panic - not syncing: hung_task"),
    _Row("host_kernel_panic", lb.NODE_LOST, E, NODE, "kernel panic",
         r"kernel panic - not syncing|kernel panic detected - CPU"),
    _Row("host_kernel_panic", lb.NODE_LOST, D, NODE, "kernel fault",
         r"BUG: unable to handle|kernel BUG at |\bOops: [0-9a-f]{4}\b|"
         r"Unable to handle kernel (?:NULL pointer|paging request)"),
    _Row("host_cpu_hang", lb.HOST_HANG, E, NODE, "CPU stuck with interrupts off",
         r"(?:detected|NMI watchdog:).*hard LOCKUP"),
    _Row("host_cpu_hang", lb.HOST_HANG, D, NODE, "CPU stuck in the kernel",
         r"BUG: soft lockup - CPU#(?P<dev>\d+) stuck for \d+s"),
    _Row("host_cpu_hang", lb.HOST_HANG, D, NODE, "CPU stalled",
         r"rcu\w*:?.*(?:self-detected stall|detected stalls|detected expedited stalls|"
         r"kthread starved)"),
    _Row("host_cpu_hang", lb.HOST_HANG, W, OPEN, "process stuck in the kernel",
         r"task (?P<dev>\S+:\d+) blocked (?:in I/O wait )?for more than \d+ seconds"),
    # memory used up
    _Row("oom_host", lb.OOM_HOST, W, CODE, "out of memory",
         r"(?:^|[\]:>] +|\d\d:\d\d +)(?P<dev>[^\]:]*?) invoked oom-killer:"),
    _Row("oom_host", lb.OOM_HOST, W, CODE, "out of memory",
         r"oom-kill:constraint=\w+,.*task=(?P<dev>[^,]+),pid=\d+"),
    _Row("oom_host", lb.OOM_HOST, W, CODE, "out of memory",
         r"Out of memory: Kill(?:ed)? process \d+ \((?P<dev>[^)]*)\)"),
    _Row("oom_host", lb.OOM_HOST, W, CODE, "out of memory",
         r"Memory cgroup out of memory: Kill"),
    _Row("oom_host", lb.OOM_HOST, W, CODE, "out of memory",
         r"Killed process \d+ \((?P<dev>[^)]*)\),? (?:UID|total-vm)"),
    _Row("oom_host", lb.OOM_HOST, W, CODE, "out of memory",
         r"OOM encountered, victim process: (?P<dev>[^,]+)"),
    # processes
    _Row("nccl_segfault", lb.USER_CODE, W, OPEN, "crash inside NCCL",
         r"(?P<dev>\S+\[\d+\])?:? *segfault at [0-9a-f]+ .* in libnccl"),
    _Row("process_segfault", lb.USER_CODE, W, OPEN, "process crashed",
         r"(?P<dev>\S+\[\d+\]): segfault at [0-9a-f]+ ip|"
         r"traps: (?P<proc>\S+)\[\d+\].*(?:general protection|trap invalid opcode)"),
    # network
    _Row("network_ib", lb.NETWORK_IB, E, NET, "network adapter firmware failed",
         r"mlx5_core.*(?:health compromised|[Ff]atal (?:error|fw)|assert_var\[|"
         r"firmware internal error|poll_health.*(?:halt|miss)|mlx5_error_sw_reset|"
         r"will not be able to recover|enter error state)"),
    _Row("network_ib", lb.NETWORK_IB, W, NET, "network link down",
         r"(?:mlx[45]\w*|ib\d+|infiniband|ibp\w+)\b.*(?:[Ll]ink [Dd]own|port.*down|state.*DOWN)"),
    _Row("network_ib", lb.NETWORK_IB, W, NET, "network cable or module error",
         r"mlx5\w*:?.*Port module event(?:\[error\]|"
         r"\[warning\])?: module \d+, (?:Cable (?:error|unplugged)|Bus stuck|High temp|"
         r"Unknown error|Power budget)"),
    _Row("network_ib", lb.NETWORK_IB, W, NET, "network adapter lacks slot power",
         r"mlx5\w*.*Detected insufficient power on the PCIe slot \(\d+W\)"),
    _Row("network_ib", lb.NETWORK_IB, W, NET, "network adapter command failed",
         r"mlx5_cmd_(?:out_err|check|exec)\S*:.*(?:failed|timeout)"),
    _Row("network_ib", lb.NETWORK_IB, W, NET, "network adapter error",
         r"mlx[45]\w*.*(?:wait_func.*timeout|TX timeout|tx timeout|CQE error|Error cqe|"
         r"cable is shorted)"),
    _Row("network_ib", lb.NETWORK_IB, W, NET, "RDMA device error",
         r"\b(?:ib_\w+|ipoib|mlx5_ib|rdma_rxe|bnxt_re|irdma|efa)\b.*(?:transmit timeout|failed|"
         r"QP error|async event.*error)"),
    _Row("network_link", lb.NETWORK_IB, W, NET, "network transmit queue stuck",
         r"NETDEV WATCHDOG: (?P<dev>\S+) .*transmit queue \d+ timed out"),
    _Row("network_link", lb.NETWORK_IB, W, NET, "network link down",
         r"(?P<dev>\S+): (?:NIC )?[Ll]ink is (?:[Dd]own|DOWN)\b|"
         r"link status definitely down for interface (?P<port>\w+)"),
    # storage
    _Row("storage", lb.STORAGE, D, DISK, "disk failed",
         r"md/raid\S*:.*Disk failure on (?P<dev>\w+)"),
    _Row("storage", lb.STORAGE, D, DISK, "file system shut down",
         r"(?:EXT[234]-fs|XFS|"
         r"BTRFS)\b.*\((?P<dev>[^)]*)\).*(?:[Rr]emounting filesystem read-only|"
         r"[Ss]hutting down filesystem|forced readonly|[Cc]orrupt)"),
    _Row("storage", lb.STORAGE, D, DISK, "file system error",
         r"(?:EXT[234]-fs|XFS|BTRFS)\b.*?(?:\((?P<dev>[^)]*)\).*)?\berror\b"),
    _Row("storage", lb.STORAGE, D, DISK, "disk path lost",
         r"block (?P<dev>nvme\w+): no (?:available|usable) path"),
    _Row("storage", lb.STORAGE, D, DISK, "disk stopped answering",
         r"nvme (?P<dev>nvme\w+): (?:.*timeout, (?:aborting|reset|completion|disable)|"
         r"[Dd]isabling device|[Dd]evice not ready|controller is down|[Rr]emoving after probe|"
         r"I/O error|frozen state error)"),
    _Row("storage", lb.STORAGE, D, DISK, "read past the end of a disk",
         r"attempt to access beyond end of device"),
    _Row("storage", lb.STORAGE, D, DISK, "disk I/O error",
         r"Buffer I/O error on (?:dev|device) (?P<dev>[\w-]+)"),
    _Row("storage", lb.STORAGE, D, DISK, "disk I/O error",
         r"(?:I/O|critical (?:medium|target|space allocation)) error, dev (?P<dev>[\w-]+),"),
    _Row("storage", lb.STORAGE, W, DISK, "disk link error",
         r"\bata\d+(?:\.\d+)?: (?:failed command|exception Emask|hard resetting)"),
    _Row("storage", lb.STORAGE, W, DISK, "file server silent",
         r"nfs: server (?P<dev>\S+) not responding"),
    _Row("storage", lb.STORAGE, W, DISK, "NFS state lost",
         r"nfs4?_\w+: .*(?:failed|unhandled error)"),
    _Row("storage", lb.STORAGE, W, DISK, "Lustre error",
         r"LustreError:|Lustre:.*(?:Connection to .* was lost|evicted|timed out)"),
    _Row("storage", lb.STORAGE, W, DISK, "Ceph error",
         r"\b(?:ceph|libceph|rbd): .*(?:session lost|hung|socket (?:closed|error)|timeout)"),
)
# fmt: on
