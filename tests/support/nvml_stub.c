/* A stand-in for libnvidia-ml.so.1, loaded by the real pynvml in tests.
 *
 * Every call reads the control file named by NVML_STUB_CONTROL anew, so a test sets faults while
 * the probe runs. The file holds lines "KEY VALUE":
 *     gpus N                    how many GPUs there are (default 2)
 *     init CODE                 what nvmlInit returns
 *     block FUNCTION            this function never returns
 *     crash FUNCTION            this function ends the process
 *     fail FUNCTION CODE        this function returns CODE
 *     I.fail FUNCTION CODE      this function returns CODE when asked about GPU I
 *     lost I                    GPU I answers every call with NVML_ERROR_GPU_IS_LOST
 *     I.NAME VALUE              a value of GPU I, e.g. "0.ecc_uncorrected_volatile 3"
 *     link_down I LINK          NVLink LINK of GPU I is inactive
 *     xid SEQ I CODE            GPU I reports an XID; SEQ counts up from 1
 * Where MIDWATCH_NODE is set and a file PATH.NODE exists, that one is read instead.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, TIMEOUT = 10, LOST = 15 };
enum { GPUS_MAX = 8, LINKS = 4 };

typedef struct { int index; } gpu_t;
typedef struct {
  gpu_t *device;
  unsigned long long type, data;
  unsigned int gpu_instance, compute_instance;
} event_t;
typedef struct {
  char legacy[16];
  unsigned int domain, bus, device, id, subsystem;
  char bus_id[32];
} pci_t;
typedef struct {
  uint32_t field, scope;
  int64_t timestamp, latency;
  int type, result;
  union { double d; unsigned long long u; } value;
} field_t;

static gpu_t gpus[GPUS_MAX];
static int next_event = 1;

/* Find "KEY ..." in the control file; copies the rest of the line into out. */
static int find(const char *key, char *out, size_t size) {
  char line[256];
  size_t length = strlen(key);
  const char *path = getenv("NVML_STUB_CONTROL"), *node = getenv("MIDWATCH_NODE");
  char own[1024];
  if (path && node) {
    snprintf(own, sizeof own, "%s.%s", path, node);
    if (!access(own, R_OK)) path = own;
  }
  FILE *file = path ? fopen(path, "r") : NULL;
  int found = 0;
  if (!file) return 0;
  while (!found && fgets(line, sizeof line, file)) {
    line[strcspn(line, "\n")] = 0;
    if (!strncmp(line, key, length) && (line[length] == ' ' || !line[length])) {
      snprintf(out, size, "%s", line[length] ? line + length + 1 : "");
      found = 1;
    }
  }
  fclose(file);
  return found;
}

static unsigned long long value_of(int index, const char *name, unsigned long long fallback) {
  char key[64], text[64];
  snprintf(key, sizeof key, "%d.%s", index, name);
  return find(key, text, sizeof text) ? strtoull(text, NULL, 10) : fallback;
}

/* What a call to function must do before it answers; nonzero is what it must return. */
static int gate(const char *function) {
  char key[128], text[64];
  snprintf(key, sizeof key, "block %s", function);
  if (find(key, text, sizeof text)) for (;;) pause();
  snprintf(key, sizeof key, "crash %s", function);
  if (find(key, text, sizeof text)) _exit(66);
  snprintf(key, sizeof key, "fail %s", function);
  return find(key, text, sizeof text) ? atoi(text) : OK;
}

static int gate_gpu(const char *function, const gpu_t *gpu) {
  char key[128], text[8];
  int code = gate(function);
  if (code != OK) return code;
  snprintf(key, sizeof key, "%d.fail %s", gpu->index, function);
  if (find(key, text, sizeof text)) return atoi(text);
  snprintf(key, sizeof key, "lost %d", gpu->index);
  return find(key, text, sizeof text) ? LOST : OK;
}

#define GATE() do { int code_ = gate(__func__); if (code_ != OK) return code_; } while (0)
#define GATE_GPU(g) do { int code_ = gate_gpu(__func__, g); if (code_ != OK) return code_; } while (0)

int nvmlInitWithFlags(unsigned int flags) {
  char text[16];
  (void)flags;
  GATE();
  return find("init", text, sizeof text) ? atoi(text) : OK;
}
int nvmlShutdown(void) { GATE(); return OK; }
const char *nvmlErrorString(int code) { (void)code; return "error set by the test"; }

int nvmlSystemGetDriverVersion(char *out, unsigned int size) {
  GATE();
  snprintf(out, size, "999.1");
  return OK;
}
int nvmlDeviceGetCount_v2(unsigned int *count) {
  char text[16];
  GATE();
  *count = find("gpus", text, sizeof text) ? (unsigned)atoi(text) : 2;
  return OK;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, gpu_t **out) {
  GATE();
  if (index >= GPUS_MAX) return INVALID;
  gpus[index].index = (int)index;
  *out = &gpus[index];
  return gate_gpu(__func__, *out);
}
int nvmlDeviceGetUUID(gpu_t *gpu, char *out, unsigned int size) {
  GATE_GPU(gpu);
  snprintf(out, size, "GPU-00000000-0000-0000-0000-%012llu",
           value_of(gpu->index, "uuid", (unsigned)gpu->index + 1));
  return OK;
}
int nvmlDeviceGetSerial(gpu_t *gpu, char *out, unsigned int size) {
  GATE_GPU(gpu);
  snprintf(out, size, "16500000%05llu", value_of(gpu->index, "serial", (unsigned)gpu->index + 1));
  return OK;
}
int nvmlDeviceGetName(gpu_t *gpu, char *out, unsigned int size) {
  GATE_GPU(gpu);
  snprintf(out, size, "Stub GPU");
  return OK;
}
int nvmlDeviceGetPciInfo_v3(gpu_t *gpu, pci_t *out) {
  GATE_GPU(gpu);
  memset(out, 0, sizeof *out);
  snprintf(out->bus_id, sizeof out->bus_id, "00000000:%02X:00.0", gpu->index + 1);
  return OK;
}
int nvmlDeviceGetTotalEccErrors(gpu_t *gpu, int kind, int counter, unsigned long long *out) {
  static const char *names[2][2] = {{"ecc_corrected_volatile", "ecc_corrected_aggregate"},
                                    {"ecc_uncorrected_volatile", "ecc_uncorrected_aggregate"}};
  GATE_GPU(gpu);
  *out = value_of(gpu->index, names[kind & 1][counter & 1], 0);
  return OK;
}
int nvmlDeviceGetRemappedRows(gpu_t *gpu, unsigned int *corrected, unsigned int *uncorrected,
                              unsigned int *pending, unsigned int *failed) {
  GATE_GPU(gpu);
  *corrected = (unsigned)value_of(gpu->index, "remapped_corrected", 0);
  *uncorrected = (unsigned)value_of(gpu->index, "remapped_uncorrected", 0);
  *pending = (unsigned)value_of(gpu->index, "remap_pending", 0);
  *failed = (unsigned)value_of(gpu->index, "remap_failed", 0);
  return OK;
}
int nvmlDeviceGetRetiredPages(gpu_t *gpu, int cause, unsigned int *count,
                              unsigned long long *pages) {
  unsigned int have = (unsigned)value_of(gpu->index, cause ? "retired_double" : "retired_single", 0);
  GATE_GPU(gpu);
  if (!pages) { *count = have; return have ? 7 : OK; }
  for (unsigned int i = 0; i < have; i++) pages[i] = 4096ull * (i + 1);
  *count = have;
  return OK;
}
int nvmlDeviceGetRetiredPagesPendingStatus(gpu_t *gpu, int *pending) {
  GATE_GPU(gpu);
  *pending = (int)value_of(gpu->index, "retirement_pending", 0);
  return OK;
}
int nvmlDeviceGetNvLinkState(gpu_t *gpu, unsigned int link, int *active) {
  char key[64], text[8];
  GATE_GPU(gpu);
  if (link >= LINKS) return INVALID;
  snprintf(key, sizeof key, "link_down %d %u", gpu->index, link);
  *active = !find(key, text, sizeof text);
  return OK;
}
int nvmlDeviceGetFieldValues(gpu_t *gpu, int count, field_t *values) {
  GATE_GPU(gpu);
  for (int i = 0; i < count; i++) {
    unsigned int field = values[i].field;
    values[i].result = OK;
    if (field == 38) values[i].value.u = value_of(gpu->index, "nvlink_crc", 0);
    else if (field == 52) values[i].value.u = value_of(gpu->index, "nvlink_replay", 0);
    else if (field == 59) values[i].value.u = value_of(gpu->index, "nvlink_recovery", 0);
    else if (field == 230) values[i].value.u = value_of(gpu->index, "recovery_action", 0);
    else values[i].result = NOT_SUPPORTED;
  }
  return OK;
}

#define READS(function, type, name, fallback)      \
  int function(gpu_t *gpu, type *out) {            \
    GATE_GPU(gpu);                                 \
    *out = (type)value_of(gpu->index, name, fallback); \
    return OK;                                     \
  }
READS(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, "throttle", 0)
READS(nvmlDeviceGetPowerUsage, unsigned int, "power_milliwatts", 300000)
READS(nvmlDeviceGetEnforcedPowerLimit, unsigned int, "power_limit_milliwatts", 700000)
READS(nvmlDeviceGetTotalEnergyConsumption, unsigned long long, "energy_millijoules", 5000000)
READS(nvmlDeviceGetPcieReplayCounter, unsigned int, "pcie_replays", 0)
READS(nvmlDeviceGetCurrPcieLinkGeneration, unsigned int, "pcie_generation", 5)
READS(nvmlDeviceGetCurrPcieLinkWidth, unsigned int, "pcie_lanes", 16)
READS(nvmlDeviceGetMaxPcieLinkWidth, unsigned int, "pcie_lanes_max", 16)

int nvmlDeviceGetTemperature(gpu_t *gpu, int sensor, unsigned int *out) {
  (void)sensor;
  GATE_GPU(gpu);
  *out = (unsigned)value_of(gpu->index, "temperature", 45);
  return OK;
}
int nvmlDeviceGetClockInfo(gpu_t *gpu, int which, unsigned int *out) {
  GATE_GPU(gpu);
  *out = (unsigned)value_of(gpu->index, which == 1 ? "sm_clock" : "memory_clock", 1980);
  return OK;
}
int nvmlDeviceGetMaxClockInfo(gpu_t *gpu, int which, unsigned int *out) {
  (void)which;
  GATE_GPU(gpu);
  *out = (unsigned)value_of(gpu->index, "sm_clock_max", 1980);
  return OK;
}

int nvmlEventSetCreate(void **set) { GATE(); *set = &next_event; return OK; }
int nvmlEventSetFree(void *set) { (void)set; GATE(); return OK; }
int nvmlDeviceRegisterEvents(gpu_t *gpu, unsigned long long types, void *set) {
  (void)types; (void)set;
  GATE_GPU(gpu);
  return OK;
}
int nvmlEventSetWait_v2(void *set, event_t *event, unsigned int timeout_ms) {
  char key[32], text[64];
  int index;
  unsigned long long code;
  (void)set; (void)timeout_ms;
  GATE();
  snprintf(key, sizeof key, "xid %d", next_event);
  if (!find(key, text, sizeof text) || sscanf(text, "%d %llu", &index, &code) != 2) return TIMEOUT;
  next_event++;
  memset(event, 0, sizeof *event);
  event->device = &gpus[index];
  event->type = 8;
  event->data = code;
  return OK;
}
