"""What failure messages mean: the rules that failure_text applies. failure_kinds says how.

Written from the messages of PyTorch (c10, c10d, elastic, DataLoader, serialization), NCCL, CUDA,
DeepSpeed, fairseq, Megatron, gloo, Slurm, Kubernetes, Ray, Open MPI, errno(3), the S3 clients and
the file systems training clusters use. Kernel lines are kernel_table's.
"""

from __future__ import annotations

from . import labels as lb
from .failure_kinds import (
    CAUSE,
    DETAIL,
    DRAIN,
    ECHO,
    NOISE,
    PEER,
    PRECISE,
    PROGRAM,
    RESTART,
    Rule,
)
from .verdicts import Blame

# fmt: off
RULES: tuple[Rule, ...] = (
    # --- GPU ---------------------------------------------------------------------------------
    Rule(lb.GPU_ECC, CAUSE, 0.97,
         r"uncorrectable ECC|ECCUncorrectable|ECC_UNCORRECTABLE|unrecovere?d? ECC|"
         r"double[- ]bit (?:ECC )?error|\bDBE\b.*(?:detected|error)"),
    Rule(lb.GPU_ECC, CAUSE, 0.85,
         r"Remapping Failure Occurred\s*:\s*Yes|row[- ]remap\w* (?:failure|failed)|(?:uncontained|"
         r"uncorrectable) (?:memory|DRAM|SRAM) error|VOLATILE_DBE|PENDING_PAGE_RETIREMENTS|"
         r"UNCORRECTABLE_ROW_REMAP"),
    Rule(lb.GPU_ECC, DETAIL, 0.7,
         r"\bECC (?:memory )?errors?\b(?!.{0,4}\b0\b)|(?:page retirement|row remap\w*).{0,12}"
         r"pending|[SD]RAM Uncorrectable\w*\s*:\s*[1-9]|"
         r"Pending(?: Page)?(?: Blacklist)?\s*:\s*Yes", action=DRAIN),
    Rule(lb.GPU_FELL_OFF_BUS, CAUSE, 0.97,
         r"fallen off the bus|GPU is lost|GPU_IS_LOST|GpuIsLost"),
    Rule(lb.GPU_FELL_OFF_BUS, CAUSE, 0.6,
         r"Unable to determine the device handle for"),
    Rule(lb.GPU_DRIVER_INIT, CAUSE, 0.9,
         r"couldn't communicate with the NVIDIA driver|Failed to initialize NVML|"
         r"Driver/library version mismatch|RmInitAdapter failed|"
         r"nvidia-container-cli: initialization error|"
         r"fabric ?manager.{0,60}(?:fail|not running|not initiali[sz]ed|aborted)"),
    Rule(lb.GPU_DRIVER_INIT, PRECISE, 0.85,
         r"system not yet initialized|Error 80[2-4]:|CUDA_ERROR_SYSTEM_\w+"),
    # A container built for another driver prints these too: they cost no node by themselves.
    Rule(lb.GPU_DRIVER_INIT, PRECISE, 0.8,
         r"Found no NVIDIA driver|NVIDIA driver on your system is too old|"
         r"CUDA driver version is insufficient|"
         r"CUDA driver initialization failed|CUDA unknown error - this may be|"
         r"no CUDA-capable device is detected|CUDA-capable device\(s\) is/are busy or unavailable|"
         r"cudaErrorDevicesUnavailable|CUDA_ERROR_(?:NO_DEVICE|NOT_INITIALIZED)|cuInit.{0,20}fail|"
         r"nvidia-container-cli: device error",
         action=RESTART),
    Rule(lb.GPU_DRIVER_INIT, DETAIL, 0.6,
         r"Unexpected error from cudaGetDeviceCount|CUDA_ERROR_UNKNOWN|cudaErrorUnknown|"
         r"cudaErrorInitializationError|\bcuda[A-Z]\w+\W{1,4}initialization error|"
         r"CUDA error: (?:unknown error|"
         r"initialization error|driver shutting down)|No CUDA GPUs are available|"
         r"^\s*No devices were found|GPU requires (?:a )?reset|Cuda failure.{0,8}'(?:unknown error|"
         r"initialization error|API call is not supported)", action=RESTART),
    Rule(lb.NVLINK, CAUSE, 0.95,
         r"uncorrectable NVLink|NVLINK_UNCORRECTABLE|NVLinkUncorrectable"),
    Rule(lb.NVLINK, CAUSE, 0.85,
         r"NV(?:Link|Switch)\b.{0,60}\b(?<!on-)(?:fatal|failure|failed|inactive|is down|degraded|"
         r"training error|contain(?:ed|ment))|(?:fatal|failed).{0,40}\bNV(?:Link|Switch)\b|"
         r"DCGM_FR_NV(?:LINK|SWITCH)\w+"),
    Rule(lb.NVLINK, DETAIL, 0.7,
         r"\bNV(?:Link|Switch)\b.{0,60}\b(?:errors?|CRC|replay|recovery)\b|"
         r"\bLink \d+: <?inactive"),
    Rule(lb.CUDA_ILLEGAL_ACCESS, PRECISE, 0.9,
         r"illegal memory access|misaligned address|cudaErrorIllegalAddress|"
         r"CUDA_ERROR_ILLEGAL_ADDRESS|illegal instruction was encountered"),
    Rule(lb.CUDA_ILLEGAL_ACCESS, DETAIL, 0.6,
         r"unspecified launch failure|CUDA_ERROR_LAUNCH_FAILED|launch timed out and was terminated|"
         r"cudaErrorLaunch\w+"),
    Rule(lb.CUDA_ILLEGAL_ACCESS, PEER, 0.35,
         r"CU(?:BLAS|DNN)_STATUS_(?:EXECUTION_FAILED|INTERNAL_ERROR|MAPPING_ERROR)"),
    Rule(lb.CUDA_ILLEGAL_ACCESS, ECHO, 0.3,
         r"ncclUnhandledCudaError|unhandled cuda error"),
    Rule(lb.OOM_GPU, PRECISE, 0.97,
         r"(?:CUDA|HIP|NPU|XPU|MPS) (?:error: )?out of memory|torch\.(?:cuda\.)?OutOfMemoryError|"
         r"CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation|Cuda failure.{0,8}'?out of memory|"
         r"RESOURCE_EXHAUSTED: (?:.*out of memory|.*alloc)|Failed to allocate.{0,60}\bon (?:GPU|"
         r"device)"),
    Rule(lb.OOM_GPU, DETAIL, 0.6,
         r"CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_(?:ALLOC_FAILED|NOT_INITIALIZED)|"
         r"CUBLAS_STATUS_NOT_INITIALIZED"),
    # --- the run was taken away ----------------------------------------------------------------
    Rule(lb.NODE_LOST, CAUSE, 0.95,
         r"\bnode[ _]fail(?:ure|ed)?\b|\bfailed node\b"),
    Rule(lb.NODE_LOST, CAUSE, 0.9,
         r"\bnodes?\b.{0,120}(?:marked (?:as )?dead|has died|died unexpectedly|was lost|"
         r"is (?:dead|unreachable)|went down|not responding|unresponsive)|NodeNotReady|NodeLost\b|"
         r"node is not ready|stopped posting node status|missed too many heartbeats|"
         r"Lost (?:contact|communication) with (?:node|host)|could not connect to MOM|"
         r"DeletionByTaintManager|\bhost (?:is down|unreachable)\b|NodeDiedError|"
         r"\bits node (?:has )?died|\bnode (?:\([^()]*\) )?(?:was (?:dead|unavailable)|"
         r"has crashed)|"
         r"\bfailure of node\b|\bnode \S+ state set to DOWN"),
    Rule(lb.NODE_LOST, DETAIL, 0.7,
         r"(?:ORTE|PRTE) (?:daemon|has lost)|No route to host.*port 22|raylet (?:died|"
         r"process.*dead|is dead)|imminent node shutdown|Shutdown manager killing pod|"
         r"node (?:is being )?rebooted|"
         r"instance (?:retirement|terminated|stopped unexpectedly)|Zero Bytes were transmitted"),
    Rule(lb.PREEMPTION, CAUSE, 0.95,
         r"DUE TO PREEMPTION|\bPreempted (?:by|to|in order)\b|PreemptionBy\w+|"
         r"instances?\.preempted|spot (?:instance )?(?:interruption|termination|reclaim|eviction)|"
         r"rebalance recommendation|preemption (?:notice|event|signal)|"
         r"EventType\W+Preempt\b"),
    Rule(lb.PREEMPTION, DETAIL, 0.75,
         r"\b(?:was|been|is|job|being|requeued.*) preempted\b|state[:= ]+PREEMPTED|\bpreempt(?:ed|"
         r"ing)\b.{0,40}(?:job|pod|node|instance|workload|VM)\b|instance-action|"
         r"instance/preempted\W+TRUE|"
         r"terminated by the (?:cloud )?provider"),
    Rule(lb.SCHEDULER, CAUSE, 0.9,
         r"DUE TO TIME LIMIT|credential expired|FailedScheduling|Insufficient nvidia\.com/gpu|"
         r"Task launch for.{0,40}failed|Unable to (?:contact slurm controller|allocate resources|"
         r"create step for job)|(?:Batch job|Job) (?:submission|violates).{0,60}(?:failed|limit)|"
         r"exceeded its (?:wall ?time|time limit)|DeadlineExceeded|exceeded quota|ErrImagePull|"
         r"ImagePullBackOff|Prolog (?:error|failed)|Requested node configuration is not available|"
         r"walltime.{0,20}exceeded"),
    Rule(lb.SCHEDULER, DETAIL, 0.7,
         r"cannot be scheduled|infeasible|slurm_\w+ error|(?:srun|sbatch|salloc|slurmstepd|"
         r"slurmctld): (?:fatal|error): (?!x11).*(?:Invalid|Unable|expired|reject|timed out|"
         r"launch failed|not permitted|Requested)|state[:= ]+TIMEOUT|"
         r"timed-out and|Reached (?:time|wall) ?limit"),
    # Slurm's own complaint about anything else: it could not run the job as it was asked to.
    Rule(lb.SCHEDULER, NOISE, 0.4,
         r"^\W*(?:srun|sbatch|salloc|slurmstepd|slurmctld): error: (?!x11|.*(?:\btasks? [\d,-]+:|"
         r"CANCELLED))"),
    Rule(lb.EXTERNAL_SIGNAL, PEER, 0.8,
         r"received (?:Signals\.)?(?:\d+|SIG\w+) death signal|"
         r"SignalException: Process \d+ got signal|^\s*KeyboardInterrupt|"
         r"Caught (?:signal )?(?:SIG(?:TERM|INT|HUP)|Ctrl-C|\w* ?signal 15)|(?:received|got|"
         r"caught) (?:a )?SIG(?:TERM|INT|HUP)\b|CANCELLED by \d+|exited on signal 15|"
         r"killed by signal: Terminated"),
    Rule(lb.EXTERNAL_SIGNAL, PEER, 0.75,
         r"\*\*\* JOB \d+\S* .*CANCELLED AT \S+ \*\*\*"),
    Rule(lb.EXTERNAL_SIGNAL, NOISE, 0.4,
         r"\*\*\* STEP .*CANCELLED AT|closing signal SIG(?:TERM|INT|HUP)|"
         r"\bexit(?: ?code)?[: =(]*(?:-15|143|130)\b|^\s*Terminated\s*$|: Terminated$"),
    # --- host memory, shared memory, storage -----------------------------------------------------
    Rule(lb.SHM_EXHAUSTED, PRECISE, 0.95,
         r"insufficient shared memory|out of shared memory|shared memory (?:segment|object|file)|"
         r"unable to (?:write to|mmap|open) .*</torch_|(?:/dev/shm|shm_open|shm\.h|nccl-shm|"
         r"psm_).{0,80}(?:fail|No space|error)|torch_shm_manager|(?:fail\w*|error|"
         r"unable).{0,60}/dev/shm|posix_fallocate failed|(?:shared memory|"
         r"/dev/shm).{0,60}(?:full|exhaust|too small)"),
    Rule(lb.SHM_EXHAUSTED, PEER, 0.6,
         r"Bus error|SIGBUS|exit(?: ?code)?[: =(]*-7\b|return code = -7\b"),
    Rule(lb.OOM_HOST, CAUSE, 0.95,
         r"oom[-_ ]kill(?:er|ed)?\b|oomd\b.{0,20}kill|OOMKilled|\bOOM Killed\b|"
         r"task \S+ ?\d*: Out Of Memory|OUT_OF_MEMORY\b(?<!ERROR_OUT_OF_MEMORY)|exceeded (?:job|"
         r"step|memory).{0,12}(?:memory )?limit|memory pressure|running low on memory|"
         r"low on resource: memory|ray\.exceptions\.OutOfMemoryError|OOM encountered|"
         r"condition: \[MemoryPressure\]|exceeds the memory usage threshold"),
    Rule(lb.OOM_HOST, PRECISE, 0.85,
         r"DefaultCPUAllocator: (?:not enough|can't allocate) memory|std::bad_alloc|"
         r"Cannot allocate memory|\[Errno 12\]|Unable to allocate .{1,24} for an array|"
         r"killed by signal: Killed|RuntimeError:.*not enough memory"),
    Rule(lb.OOM_HOST, PROGRAM, 0.8,
         r"^\s*(?:\[rank\d+\]:\s*)?(?:numpy\S*\.)?_?(?:Array)?MemoryError\b"),
    Rule(lb.OOM_HOST, PEER, 0.65,
         r"(?:exit|return)[ _]?(?:code|status)?[: =(]*(?:-9|137)\b|exited on signal 9|"
         r"(?<!closing signal )(?<!Signals\.)(?<!via )\bSIGKILL\b|^\s*Killed\s*$|"
         r"line \d+: +\d+ Killed|\btask \d+: Killed", Blame.UNKNOWN),
    Rule(lb.OOM_HOST, ECHO, 0.4,
         r"DataLoader worker .*exited unexpectedly", Blame.UNKNOWN),
    Rule(lb.STORAGE, PRECISE, 0.93,
         r"\[Errno (?:5|28|30|70|107|108|116|121|122)\]|No space left on device|"
         r"Disk quota exceeded|Stale (?:NFS )?file handle|Read-only file system|Input/output error|"
         r"Remote I/O error|Transport endpoint is not connected|Communication error on send|"
         r"Cannot send after transport endpoint shutdown|"
         r"low on resource: ephemeral-storage|condition: \[DiskPressure\]|disk (?:is )?full|"
         r"disk I/O error"),
    Rule(lb.STORAGE, PRECISE, 0.88,
         r"PytorchStream(?:Writer|Reader) failed|PyTorchFileWriter|"
         r"inline_container\.cc.*(?:unexpected pos|failed)|unexpected pos \d+ vs|file (?:might|"
         r"may) be corrupt|pickle data was truncated|Ran out of input|invalid load key|"
         r"storage has wrong size|unexpected EOF, expected|not a zip file|BadZipFile|"
         r"failed finding central directory|(?:HeaderTooLarge|HeaderTooSmall|"
         r"MetadataIncompleteBuffer|InvalidHeader)|File \S+ cannot be opened|"
         r"iostream error|basic_(?:filebuf|ios)|checkpoint.{0,60}(?:corrupt|truncated|"
         r"incomplete)|(?:checksum|CRC) mismatch"),
    Rule(lb.STORAGE, PRECISE, 0.85,
         r"botocore\.exceptions|\(SlowDown\)|\bS3(?:\.Client)?\S*Error|S3UploadFailed|"
         r"google\.(?:api_core|cloud)\S*exceptions|azure\.core\.exceptions|(?:calling the|"
         r"during) (?:Put|Get|Head|Upload|Complete)\w* operation|(?:NFS|Lustre|GPFS|mmfs\w*|"
         r"Weka|BeeGFS|Ceph|JuiceFS|FSx|EFS)\b.{0,80}(?:timed out|not responding|error|fail|hang|"
         r"hung|unavailable|lost)"),
    Rule(lb.STORAGE, DETAIL, 0.65,
         r"(?:Errno 11\]|Errno 16\]|Errno 37\]|unable to lock file|database is locked|"
         r"No locks available)|(?:fail|error|unable|timed out).{0,40}"
         r"(?:writ|sav|load|read|upload)\w*.{0,30}(?:checkpoint|ckpt)|Unable to open file|h5py|"
         r"(?:FileNotFound|Permission|IsADirectory)Error.*(?:checkpoint|ckpt|\.pt\b|\.distcp|"
         r"\.safetensors)"),
    # A name or a port belongs to what was to be reached.
    Rule(lb.STORAGE, PRECISE, 0.85,
         r"(?:ConnectionPool\(host=|endpoint URL:|Failed to resolve).{0,80}(?:\bs3\b|storage|blob|"
         r"minio|\brgw\b|\boss\b)"),
    # --- network, peers, meeting points -----------------------------------------------------------
    Rule(lb.NETWORK_IB, DETAIL, 0.93,
         r"NET/IB ?:.*(?:completion|async|error|fail|Unable|vendor)|\bibv_\w+.*(?:fail|error)|"
         r"IBV_WC_\w+_ERR|transport retry (?:count|counter) exceeded|RETRY_EXC_ERR|"
         r"NET/OFI.*(?:fail|error|RC:)|(?:libfabric|efa\b).*(?:error|fail|unresponsive)|UCX +ERROR|"
         r"\b(?:mlx\w*|hca|InfiniBand|RoCE|RDMA)\b(?!-)\S*.{0,60}(?:\bdown\b|fail|error|flap|unreachable)|"
         r"link flap"),
    Rule(lb.NETWORK_IB, PRECISE, 0.8,
         r"\bibv_\w+.*Cannot allocate memory"),
    Rule(lb.NETWORK_IB, DETAIL, 0.6,
         r"lib(?:ibverbs|mlx\d|rdmacm)\S*:? .*(?:warning|fail|error|couldn't|unable)"),
    Rule(lb.NETWORK_IB, DETAIL, 0.75,
         r"NET/Socket.*(?:fail|error)|NCCL WARN.*(?:No route to host|Network is unreachable|"
         r"Connection timed out|no socket interface found)|packet loss|"
         r"socket[A-Z]\w+:? .*(?:timed out|No route to host|unreachable|connection abort)"),
    Rule(lb.NETWORK_IB, PEER, 0.6,
         r"NCCL WARN socket\w*Connect\b"),
    Rule(lb.NETWORK_IB, PEER, 0.55,
         r"No route to host|Network is (?:unreachable|down)|Temporary failure in name resolution|"
         r"Name or service not known"),
    Rule(lb.NETWORK_IB, PEER, 0.5,
         r"ConnectTimeoutError|Max retries exceeded with url|couldn't connect to 'https?:"),
    Rule(lb.REMOTE_PEER_EXIT, PEER, 0.9,
         r"Connection (?:closed|reset) by (?:remote )?peer|(?:socketProgress|"
         r"Net ?:).*Connection closed|Did the remote server shut ?down or crash|"
         r"failed to recv, got 0 bytes|(?:recvValue|sendBytes|recvBytes)\w* failed|Broken pipe|"
         r"NCCL WARN.*Connection refused|HorovodInternalError|Horovod has been shut down|"
         r"peer (?:process )?(?:exited|died)"),
    Rule(lb.REMOTE_PEER_EXIT, PEER, 0.6,
         r"ncclRemoteError|remote process exited or there was a network error"),
    Rule(lb.REMOTE_PEER_EXIT, ECHO, 0.5,
         r"NCCL communicator was aborted|Worker unexpectedly exits|worker died unexpectedly|"
         r"its worker process has died"),
    Rule(lb.NETWORK_IB, ECHO, 0.4,
         r"ncclSystemError|unhandled system error"),
    Rule(lb.RENDEZVOUS, PEER, 0.93,
         r"connectFullMesh failed|Rendezvous\w*(?:Error|Closed)|store[_ ]based[_ ]barrier|"
         r"client socket has (?:timed out|"
         r"failed)|TCP client failed to connect|server socket has failed|address already in use|"
         r"EADDRINUSE|\[Errno 98\]|seconds waiting for clients|connection to the C10d store|"
         r"DistStoreError|(?:TCPStore|c10d).*(?:timed out|timeout|refused)|"
         r"init_process_group.*(?:time|fail)|Timed out initializing process group|"
         r"rendezvous.{0,60}(?:timed? ?out|fail|expired)|wait timeout after \d+ms|"
         r"connect\(\) timed out|ret(?:rie|rei)ving ncclUniqueId|clients? joined|"
         r"environment variable \w+ expected, but not set"),
    Rule(lb.RENDEZVOUS, PRECISE, 0.9,
         r"\[c10d\].*(?:gai error|cannot be retrieved)|Error initializing torch\.distributed"),
    Rule(lb.RENDEZVOUS, ECHO, 0.6,
         r"DistNetworkError|Connection refused|Socket Timeout"),
    Rule(lb.NCCL_TIMEOUT, PEER, 0.93,
         r"caught collective operation timeout|collective timeout\b|"
         r"collective operation.{0,40}timed? ?out|monitoredBarrier|watchdog timeout|"
         r"Timed out waiting \d+ms for (?:send|recv)|watchdog got stuck|"
         r"heart ?beat monitor timed out|Exception \(either an error or timeout\)|"
         r"waiting for.{0,40}missing ranks|ran for \d+ milliseconds before timing out"),
    Rule(lb.NCCL_TIMEOUT, ECHO, 0.5,
         r"NCCL operations have failed or timed out|NCCL.{0,40}tim(?:ed out|eout)|"
         r"Gloo.{0,40}timed? ?out"),
    # --- stuck ------------------------------------------------------------------------------------
    Rule(lb.HOST_HANG, DETAIL, 0.8,
         r"soft lockup|hard LOCKUP|blocked for more than \d+ seconds|\b(?:hang|hung) detected\b|"
         r"self-detected stall"),
    Rule(lb.HOST_HANG, PEER, 0.6,
         r"(?:has|have|is|appears|seems) (?:been )?(?:hung|hanging|stuck)\b|"
         r"no progress (?:for|in|since)|Did not get (?:subsequent |initial )?heartbeat|"
         r"uninterruptible sleep|Timeout \(\d+:\d\d:\d\d\)!"),
    # Stacks taken by hand from live processes: somebody looked for a hang.
    Rule(lb.HOST_HANG, NOISE, 0.4,
         r"^\s*Thread (?:0x[0-9a-fA-F]+|\d+) \((?:idle|active)(?:\+gil)?\)|"
         r"^\W*\d+ +Thread 0x[0-9a-f]+ \(LWP \d+\)"),
    # --- the program ------------------------------------------------------------------------------
    Rule(lb.USER_CODE, PROGRAM, 0.5,
         r"Assertion [`'].*['`] failed"),
    Rule(lb.USER_CODE, PROGRAM, 0.5,
         r"\[Errno 24\]|Too many open files"),
    Rule(lb.USER_CODE, PRECISE, 0.92,
         r"device-side assert|(?:\.cu\S*:\d+|block: \[).*Assertion `|"
         r"Detected mismatch between collectives|shapes? (?:cannot be multiplied|mismatch)|"
         r"size mismatch|must match the size|Expected all tensors to be on the same device|"
         r"Error\(s\) in loading state_dict|expected scalar type|does not require grad|"
         r"Expected to have finished reduction|marked? (?:a variable )?(?:as )?ready (?:only once|"
         r"twice)|modified by an inplace|Trying to backward through the graph a second|"
         r"Cannot re-initialize CUDA in forked|no kernel image is available|Duplicate GPU detected|"
         r"ncclInvalid(?:Usage|Argument)|invalid device ordinal|unrecognized arguments|"
         r"error: argument|CUDNN_STATUS_BAD_PARAM|OutOfResources: out of resource|"
         r"is invalid for input of size|stack expects each tensor|dimension out of range|"
         r"Given groups=|index out of (?:range|"
         r"bounds)|CUDA error: invalid (?:argument|configuration)"),
    Rule(lb.USER_CODE, PROGRAM, 0.85,
         r"(?:^|[\s:.(])(?:omegaconf|hydra|yaml|jsonargparse|pydantic\S*)\.\S*(?:Error|"
         r"Exception)\b|ConfigAttributeError|ValidationError:|MissingMandatoryValue"),
    Rule(lb.USER_CODE, PROGRAM, 0.8,
         r"JSONDecodeError|Unicode(?:De|En)codeError|UnidentifiedImage|ArrowInvalid|(?:corrupt|"
         r"malformed|bad) (?:sample|record|image|data|example)", Blame.DATA),
    Rule(lb.USER_CODE, PROGRAM, 0.8,
         r"^(?:.*[\]:)|] *)?(?:\w+\.)*(?:ModuleNotFound|Import|Attribute|Name|Type|Key|Index|Value|"
         r"Assertion|NotImplemented|ZeroDivision|UnboundLocal|Syntax|Indentation|Recursion|"
         r"FileNotFound|Permission|NotADirectory|IsADirectory|FileExists|Lookup|"
         r"Overflow)Error(?:: |$|\()"),
    Rule(lb.USER_CODE, PROGRAM, 0.7,
         r"RuntimeError: (?!NCCL|CUDA|\[)(?:.*(?:should|must) (?:be|have|match) |expected |"
         r".* but (?:got|found|expected) )"),
    Rule(lb.USER_CODE, ECHO, 0.45,
         r"Segmentation fault|\bSIGSEGV\b|exit(?: ?code)?[: =(]*-11\b|return code = -11\b|"
         r"exited on signal 11", Blame.UNKNOWN, RESTART),
    Rule(lb.USER_CODE, PROGRAM, 0.5,
         r"DataLoader worker .*exited unexpectedly with exit code [1-9]\b(?!\d)", Blame.UNKNOWN,
         RESTART),
    # Something was amiss and it does not say what: more than the clean-up after it, and no more.
    Rule(lb.UNKNOWN, NOISE, 0.3,
         r"\bNCCL error in:|ncclInternalError"),
    Rule(lb.UNKNOWN, ECHO, 0.3,
         r"\bexit ?code[: =(]*-6\b|\bSIGABRT\b"),
    # The status that an uncaught exception leaves, where no more is known.
    Rule(lb.USER_CODE, NOISE, 0.3,
         r"\bexit ?code[: =(]*1\b(?!\d)", Blame.UNKNOWN, RESTART),
    Rule(lb.USER_CODE, NOISE, 0.35,
         r"^(?:\[rank\d+\]: ?|\S+: )?(?:[A-Za-z_]\w*\.)*(?-i:(?!ChildFailed|Dist|"
         r"CalledProcess|RayTask|"
         r"ProcessRaised)[A-Z]\w*(?:Error|Exception))(?:: (?!NCCL|CUDA)|\s*$)",
         Blame.UNKNOWN, RESTART),
    # --- numbers, where the text says it in words ----------------------------------------------
    Rule(lb.LOSS_SCALE_COLLAPSE, PRECISE, 0.95,
         r"minimum loss scale reached|loss scale (?:is )?(?:already )?at (?:its |"
         r"the )?(?:minimum|floor)|loss is probably exploding|cannot decrease scale any ?more"),
    Rule(lb.NAN_LOSS, PRECISE, 0.9,
         r"\bloss (?:is|became|was|=|:) *(?:nan|inf|not finite|non-?finite)\b.{0,24}(?:stop|"
         r"abort|exit|terminat|skip|$)|\b(?:nan|inf|non-?finite)s? (?:detected|found|"
         r"encountered|values?|in|loss)\b(?! in input tensor)|found (?:NaN|Inf)|"
         r"no[nt][- ]finite (?:loss|grad)|returned nan values|nan gradient|nan/inf|"
         r"found invalid values:.*\bnan\b"),
)
# fmt: on
