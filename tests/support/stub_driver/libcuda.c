// A libcuda.so.1 without a GPU: enough of the driver API to load and launch kernels, recording every call.
//
// It is as strict as the driver about common mistakes: no calls before cuInit or after a fork, none without a current
// context, no load during a capture except in relaxed mode, no more dynamic shared memory and no larger clusters than
// were requested, no clusters on GPUs without them. An image is not code but the text "parameter-bytes kernel-name".
// Other entry points of the API succeed and do nothing.

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { kSuccess, kInvalidValue, kNotInitialized = 3, kInvalidDevice = 101, kInvalidImage = 200, kInvalidContext = 201,
       kNotFound = 500, kCaptureUnsupported = 900, kCaptureImplicit = 906, kInvalidClusterSize = 912 };
enum { kMaxDevices = 4, kMaxKernels = 1024, kMaxCalls = 1 << 15, kMaxParameters = 1024, kDefaultShared = 48 * 1024,
       kPortableCluster = 8, kLargestCluster = 16 };
enum { kRelaxed = 2 };  // a thread's capture mode
enum { kDynamicSharedSize = 8, kNonPortableCluster = 14, kClusterDimension = 4 };  // attributes

typedef struct {
  char name[168];
  int parameter_bytes;
  int shared_limit[kMaxDevices];
  int cluster_limit[kMaxDevices];
} Kernel;

typedef struct {
  char call[40];
  int device;            // of the thread's current context; -1: none
  uint64_t arguments[4];
  char kernel[168];
  uint32_t grid[3], block[3], cluster[3], shared_bytes, parameter_bytes;
  unsigned char parameters[kMaxParameters];
} Call;

// Set and read by tests.
int stub_version                        = 13000;  // CUDA version
int stub_devices                        = 1;
int stub_capabilities[2 * kMaxDevices]  = {9, 0, 9, 0, 9, 0, 9, 0};  // major, minor
int stub_largest_cluster                = 16;  // largest cluster that a device has room for
uint64_t stub_captured_stream           = 0;  // 0: no capture
char stub_failing_call[40]              = "";
int stub_failure                        = 0;
int stub_pause_us                       = 0;  // pause at the start of every recorded call
int stub_recording                      = 1;
int stub_call_count                     = 0;
Call stub_calls[kMaxCalls];

static Kernel kernels[kMaxKernels];
static int kernel_count      = 0;
static pid_t initialised_by  = 0;
static __thread int current  = -1;  // device of the thread's context
static __thread int mode     = 0;   // the thread's capture mode

static Call* record(char const* name, uint64_t a, uint64_t b, uint64_t c)
{
  static Call forgotten;
  if (stub_pause_us) { usleep(stub_pause_us); }
  int const i = stub_recording ? __atomic_fetch_add(&stub_call_count, 1, __ATOMIC_SEQ_CST) : kMaxCalls;
  Call* const call = i < kMaxCalls ? &stub_calls[i] : &forgotten;
  memset(call, 0, sizeof *call);
  strncpy(call->call, name, sizeof call->call - 1);
  call->device = current;
  call->arguments[0] = a, call->arguments[1] = b, call->arguments[2] = c;
  return call;
}

#define FAIL_IF(condition, status) if (condition) return status
#define CHECK_CALL() \
  FAIL_IF(initialised_by != getpid(), kNotInitialized); \
  FAIL_IF(strcmp(stub_failing_call, __func__) == 0, stub_failure)

static int cuInit(unsigned flags)
{
  record(__func__, flags, 0, 0);
  FAIL_IF(initialised_by && initialised_by != getpid(), kNotInitialized);
  FAIL_IF(strcmp(stub_failing_call, __func__) == 0, stub_failure);
  initialised_by = getpid();
  return kSuccess;
}

static int cuDriverGetVersion(int* version) { return *version = stub_version, kSuccess; }

static int cuDeviceGet(int* device, int ordinal)
{
  CHECK_CALL();
  return *device = ordinal, ordinal < stub_devices ? kSuccess : kInvalidDevice;
}

static int cuDeviceGetCount(int* count) { return *count = stub_devices, kSuccess; }

static int cuDeviceGetAttribute(int* value, int attribute, int device)
{
  CHECK_CALL();
  return *value = stub_capabilities[2 * device + (attribute == 76)], kSuccess;  // 75: major, 76: minor
}

static int cuDevicePrimaryCtxRetain(void** context, int device)
{
  record(__func__, device, 0, 0);
  CHECK_CALL();
  return *context = (void*)(uintptr_t)(device + 1), kSuccess;
}

static int cuCtxGetCurrent(void** context)
{
  CHECK_CALL();
  return *context = (void*)(uintptr_t)(current + 1), kSuccess;
}

static int cuCtxSetCurrent(void* context)
{
  record(__func__, (uintptr_t)context, 0, 0);
  CHECK_CALL();
  return current = (int)(uintptr_t)context - 1, kSuccess;
}

static int cuCtxGetDevice(int* device)
{
  CHECK_CALL();
  return *device = current, current < 0 ? kInvalidContext : kSuccess;
}

// The default stream of the current context: 0, or CU_STREAM_LEGACY.
static int is_default(void const* stream) { return (uintptr_t)stream <= 1; }

static int cuStreamIsCapturing(void* stream, int* status)
{
  CHECK_CALL();
  FAIL_IF(is_default(stream) && current < 0, kInvalidContext);
  FAIL_IF(is_default(stream) && stub_captured_stream, kCaptureImplicit);
  return *status = !is_default(stream) && (uintptr_t)stream == stub_captured_stream, kSuccess;
}

static int cuThreadExchangeStreamCaptureMode(int* exchanged)
{
  CHECK_CALL();
  int const own = mode;
  return mode = *exchanged, *exchanged = own, kSuccess;
}

static int cuLibraryLoadData(void** library, char const* image)
{
  Call* const call = record(__func__, 0, 0, 0);
  CHECK_CALL();
  FAIL_IF(stub_captured_stream && mode != kRelaxed, kCaptureUnsupported);
  Kernel* const kernel = &kernels[__atomic_fetch_add(&kernel_count, 1, __ATOMIC_SEQ_CST)];
  FAIL_IF(sscanf(image, "%d %167s", &kernel->parameter_bytes, kernel->name) != 2, kInvalidImage);
  for (int device = 0; device < kMaxDevices; ++device) {
    kernel->shared_limit[device]  = kDefaultShared;
    kernel->cluster_limit[device] = kPortableCluster;
  }
  strcpy(call->kernel, kernel->name);
  return *library = kernel, kSuccess;
}

static int cuLibraryGetKernel(void** kernel, Kernel* library, char const* name)
{
  CHECK_CALL();
  return *kernel = library, strcmp(library->name, name) ? kNotFound : kSuccess;
}

static int cuKernelGetFunction(void** function, Kernel* kernel)
{
  strcpy(record(__func__, 0, 0, 0)->kernel, kernel->name);
  CHECK_CALL();
  FAIL_IF(current < 0, kInvalidContext);
  FAIL_IF(stub_captured_stream && mode != kRelaxed, kCaptureUnsupported);
  return *function = kernel, kSuccess;
}

static int cuFuncLoad(Kernel* kernel)
{
  strcpy(record(__func__, 0, 0, 0)->kernel, kernel->name);
  CHECK_CALL();
  FAIL_IF(stub_captured_stream && mode != kRelaxed, kCaptureUnsupported);
  return kSuccess;
}

static int cuFuncGetAttribute(int* value, int attribute, Kernel* kernel)
{
  strcpy(record(__func__, attribute, 0, 0)->kernel, kernel->name);
  CHECK_CALL();
  FAIL_IF(stub_captured_stream && mode != kRelaxed, kCaptureUnsupported);
  return *value = 32, kSuccess;
}

static int cuKernelSetAttribute(int attribute, int value, Kernel* kernel, int device)
{
  strcpy(record(__func__, attribute, value, device)->kernel, kernel->name);
  CHECK_CALL();
  FAIL_IF(stub_captured_stream && mode != kRelaxed, kCaptureUnsupported);
  if (attribute == kDynamicSharedSize) { kernel->shared_limit[device] = value; }
  if (attribute == kNonPortableCluster) { kernel->cluster_limit[device] = value ? kLargestCluster : kPortableCluster; }
  return kSuccess;
}

typedef struct {
  int id;
  char padding[4];
  uint32_t value[16];
} Attribute;

typedef struct {
  uint32_t grid[3], block[3], shared_bytes;
  void* stream;
  Attribute const* attributes;
  uint32_t attribute_count;
} Config;

static uint32_t const* cluster_of(Config const* config)
{
  for (uint32_t i = 0; i < config->attribute_count; ++i) {
    if (config->attributes[i].id == kClusterDimension) { return config->attributes[i].value; }
  }
  return NULL;
}

static int cuOccupancyMaxActiveClusters(int* clusters, Kernel const* kernel, Config const* config)
{
  uint32_t const ctas = *cluster_of(config);
  strcpy(record(__func__, ctas, 0, 0)->kernel, kernel->name);
  CHECK_CALL();
  FAIL_IF(current < 0, kInvalidContext);
  FAIL_IF(stub_captured_stream && mode != kRelaxed, kCaptureUnsupported);
  FAIL_IF(stub_capabilities[2 * current] < 9 || (int)ctas > kernel->cluster_limit[current], kInvalidClusterSize);
  return *clusters = (int)ctas <= stub_largest_cluster, kSuccess;
}

static int cuLaunchKernelEx(Config const* config, Kernel const* kernel, void** parameters, void** extra)
{
  uint32_t const* const cluster = cluster_of(config);
  if (stub_recording) {
    Call* const call = record(__func__, (uintptr_t)config->stream, (uintptr_t)extra, config->attribute_count);
    strcpy(call->kernel, kernel->name);
    memcpy(call->grid, config->grid, sizeof call->grid);
    memcpy(call->block, config->block, sizeof call->block);
    if (cluster) { memcpy(call->cluster, cluster, sizeof call->cluster); }
    call->shared_bytes    = config->shared_bytes;
    call->parameter_bytes = kernel->parameter_bytes;
    memcpy(call->parameters, parameters[0], kernel->parameter_bytes);
  }
  CHECK_CALL();
  FAIL_IF(is_default(config->stream) && current < 0, kInvalidContext);
  int const device = current < 0 ? 0 : current;
  FAIL_IF((int)config->shared_bytes > kernel->shared_limit[device], kInvalidValue);
  if (cluster) {
    FAIL_IF(stub_capabilities[2 * device] < 9 || config->grid[0] % cluster[0], kInvalidClusterSize);
    FAIL_IF((int)cluster[0] > kernel->cluster_limit[device], kInvalidClusterSize);
    FAIL_IF((int)cluster[0] > stub_largest_cluster, kInvalidClusterSize);
  }
  return kSuccess;
}

static int cuGetErrorString(int status, char const** words)
{
  static struct { int status; char const* words; } const known[] = {
    {kSuccess, "no error"}, {kInvalidValue, "invalid argument"}, {kNotInitialized, "initialization error"},
    {100, "no CUDA-capable device is detected"}, {kInvalidDevice, "invalid device ordinal"},
    {kInvalidImage, "device kernel image is invalid"}, {kInvalidContext, "invalid device context"},
    {kNotFound, "named symbol not found"}, {701, "too many resources requested for launch"},
    {kCaptureUnsupported, "operation not permitted when stream is capturing"},
    {kInvalidClusterSize, "cluster misconfiguration"},
  };
  *words = NULL;
  for (size_t i = 0; i < sizeof known / sizeof *known; ++i) {
    if (known[i].status == status) { *words = known[i].words; }
  }
  return *words ? kSuccess : kInvalidValue;
}

static int succeed(void) { return kSuccess; }

int cuGetProcAddress_v2(char const* symbol, void** function, int version, uint64_t flags, int* found)
{
  (void)version, (void)flags;
#define ENTRY(name) {#name, (void*)name}
  static struct { char const* symbol; void* function; } const table[] = {
    ENTRY(cuInit), ENTRY(cuDriverGetVersion), ENTRY(cuDeviceGet), ENTRY(cuDeviceGetCount), ENTRY(cuDeviceGetAttribute),
    ENTRY(cuDevicePrimaryCtxRetain), ENTRY(cuCtxGetCurrent), ENTRY(cuCtxSetCurrent), ENTRY(cuCtxGetDevice),
    ENTRY(cuStreamIsCapturing), ENTRY(cuThreadExchangeStreamCaptureMode), ENTRY(cuLibraryLoadData),
    ENTRY(cuLibraryGetKernel), ENTRY(cuKernelGetFunction), ENTRY(cuFuncLoad), ENTRY(cuFuncGetAttribute),
    ENTRY(cuKernelSetAttribute), ENTRY(cuLaunchKernelEx), ENTRY(cuOccupancyMaxActiveClusters), ENTRY(cuGetErrorString),
  };
  *function = (void*)succeed;
  if (found) { *found = 0; }
  for (size_t i = 0; i < sizeof table / sizeof *table; ++i) {
    if (strcmp(table[i].symbol, symbol) == 0) { *function = table[i].function; }
  }
  return kSuccess;
}
