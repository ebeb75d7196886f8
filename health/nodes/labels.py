"""The names a failure can have: every label that a failure text may be given."""

from __future__ import annotations

GPU_ECC = "gpu_ecc"
GPU_FELL_OFF_BUS = "gpu_fell_off_bus"
GPU_DRIVER_INIT = "gpu_driver_init"
NVLINK = "nvlink"
NCCL_TIMEOUT = "nccl_timeout"
NETWORK_IB = "network_ib"
REMOTE_PEER_EXIT = "remote_peer_exit"
RENDEZVOUS = "rendezvous"
PREEMPTION = "preemption"
EXTERNAL_SIGNAL = "external_signal"
NODE_LOST = "node_lost"
OOM_HOST = "oom_host"
OOM_GPU = "oom_gpu"
SHM_EXHAUSTED = "shm_exhausted"
STORAGE = "storage"
USER_CODE = "user_code"
CUDA_ILLEGAL_ACCESS = "cuda_illegal_access"
HOST_HANG = "host_hang"
SCHEDULER = "scheduler"
LOSS_SCALE_COLLAPSE = "loss_scale_collapse"
LOSS_SCALE_NORMAL_DRIFT = "loss_scale_normal_drift"
NAN_LOSS = "nan_loss"
HEALTHY_STARTUP_OVERFLOWS = "healthy_startup_overflows"
UNKNOWN = "unknown"

LABELS = (
    GPU_ECC,
    GPU_FELL_OFF_BUS,
    GPU_DRIVER_INIT,
    NVLINK,
    NCCL_TIMEOUT,
    NETWORK_IB,
    REMOTE_PEER_EXIT,
    RENDEZVOUS,
    PREEMPTION,
    EXTERNAL_SIGNAL,
    NODE_LOST,
    OOM_HOST,
    OOM_GPU,
    SHM_EXHAUSTED,
    STORAGE,
    USER_CODE,
    CUDA_ILLEGAL_ACCESS,
    HOST_HANG,
    SCHEDULER,
    LOSS_SCALE_COLLAPSE,
    LOSS_SCALE_NORMAL_DRIFT,
    NAN_LOSS,
    HEALTHY_STARTUP_OVERFLOWS,
    UNKNOWN,
)
