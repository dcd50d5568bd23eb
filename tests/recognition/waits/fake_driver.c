/* A CUDA runtime and driver that compute nothing, for census.py. Loaded in front of the real ones,
 * they let torch's device guards and autograd streams work on fake CUDA tensors without a GPU.
 *
 *     cc -shared -fPIC -w -Wl,-soname,libcuda.so.1 -o fake_driver.so fake_driver.c
 */
#include <string.h>

typedef int Error;
enum { SUCCESS = 0, MAJOR = 75, MINOR = 76, WARP_OFFSET = 308, MAJOR_OFFSET = 360 };

Error cudaGetDeviceCount(int *count) { *count = 1; return SUCCESS; }
Error cudaGetDevice(int *device) { *device = 0; return SUCCESS; }
Error cudaSetDevice(int device) { return SUCCESS; }

static Error properties(char *all) {
    memset(all, 0, 384);
    *(int *)(all + WARP_OFFSET) = 32;
    *(int *)(all + MAJOR_OFFSET) = 9;
    return SUCCESS;
}
Error cudaGetDeviceProperties(char *all, int device) { return properties(all); }
Error cudaGetDeviceProperties_v2(char *all, int device) { return properties(all); }
Error cudaDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == MAJOR ? 9 : attribute == MINOR ? 0 : 1;
    return SUCCESS;
}
Error cudaRuntimeGetVersion(int *version) { *version = 13000; return SUCCESS; }
Error cudaDriverGetVersion(int *version) { *version = 13000; return SUCCESS; }
Error cudaGetLastError(void) { return SUCCESS; }
Error cudaPeekAtLastError(void) { return SUCCESS; }

Error cudaDeviceSynchronize(void) { return SUCCESS; }
Error cudaStreamSynchronize(void *stream) { return SUCCESS; }
Error cudaStreamQuery(void *stream) { return SUCCESS; }
Error cudaStreamWaitEvent(void *stream, void *event, unsigned flags) { return SUCCESS; }
Error cudaStreamIsCapturing(void *stream, int *status) { *status = 0; return SUCCESS; }
Error cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -1;
    return SUCCESS;
}
Error cudaStreamCreateWithPriority(void **stream, unsigned flags, int priority) {
    *stream = (void *)1;
    return SUCCESS;
}
Error cudaEventCreateWithFlags(void **event, unsigned flags) { *event = (void *)1; return SUCCESS; }
Error cudaEventRecord(void *event, void *stream) { return SUCCESS; }
Error cudaEventRecordWithFlags(void *event, void *stream, unsigned flags) { return SUCCESS; }
Error cudaEventQuery(void *event) { return SUCCESS; }
Error cudaEventSynchronize(void *event) { return SUCCESS; }
Error cudaEventDestroy(void *event) { return SUCCESS; }

/* The driver: autograd asks whether a device has a context. */
Error cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
    *flags = 0;
    *active = 0;
    return SUCCESS;
}
Error cuCtxGetCurrent(void **context) { *context = 0; return SUCCESS; }
Error cuInit(unsigned flags) { return SUCCESS; }
Error cuDriverGetVersion(int *version) { *version = 13000; return SUCCESS; }
Error cuGetErrorString(Error error, const char **text) { *text = "fake"; return SUCCESS; }
