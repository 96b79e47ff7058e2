/* A stand-in for NVIDIA's driver (libcuda.so.1), so that folds on a GPU are tested where there is none.
 *
 * It runs the very PTX that the program hands over, an instruction at a time, in memory of its own, with IEEE 754's rounding; what it does not
 * know, it refuses. It is as unkind as a driver may be: fresh memory holds garbage; what is queued happens when it is waited for and not
 * before, so that memory that is touched too early gives wrong results; a NaN loses its bits. Every address, alignment and context is
 * checked, and what is wrong ends the process. Compile with -ffp-contract=off.
 *
 * M2PT_CUDA_DEVICES  how many GPUs there are (1)
 * M2PT_CUDA_MEMORY   bytes of memory of the GPU (no limit)
 * M2PT_CUDA_PINNED   bytes of memory here that it can use (no limit)
 * M2PT_CUDA_FAIL     NAME:N:CODE, the N-th call of that name fails with that number; all later calls of any name as well, unless it is
 *                    2, out of memory
 * M2PT_CUDA_LOG      a file that is told, in the end, how often each call was made, and what was not given back
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t u64;
typedef uint32_t u32;

enum { INVALID = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, NO_CONTEXT = 201, NOT_FOUND = 500 };

static void wrong(const char *what, const char *detail) {
    fprintf(stderr, "stand-in driver: %s %s\n", what, detail);
    abort();
}

/* ---- memory ---- */

struct Memory {
    char *start;
    size_t bytes;
    int on_gpu;
    struct Memory *next;
};

static struct Memory *memories;
static size_t used[2];

static u64 limit(const char *name) {
    const char *text = getenv(name);
    return text ? strtoull(text, NULL, 10) : UINT64_MAX;
}

static int allocate(int on_gpu, void **out, size_t bytes) {
    if (bytes == 0)
        return INVALID;
    if (used[on_gpu] + bytes > limit(on_gpu ? "M2PT_CUDA_MEMORY" : "M2PT_CUDA_PINNED"))
        return OUT_OF_MEMORY;
    struct Memory *memory = malloc(sizeof *memory);
    *memory = (struct Memory){aligned_alloc(512, (bytes + 511) / 512 * 512), bytes, on_gpu, memories};
    memset(memory->start, 0xa5, bytes);
    memories = memory;
    used[on_gpu] += bytes;
    *out = memory->start;
    return 0;
}

static int release(int on_gpu, void *start) {
    for (struct Memory **at = &memories; *at; at = &(*at)->next)
        if ((*at)->start == start && (*at)->on_gpu == on_gpu) {
            struct Memory *gone = *at;
            *at = gone->next;
            used[on_gpu] -= gone->bytes;
            free(gone->start);
            free(gone);
            return 0;
        }
    wrong("memory is freed that is not there:", on_gpu ? "of the GPU" : "here");
    return INVALID;
}

/* The memory, if all of these bytes lie in one piece of it. */
static void *checked(int on_gpu, u64 address, u64 bytes) {
    for (struct Memory *at = memories; at; at = at->next) {
        u64 offset = address - (u64)(uintptr_t)at->start;
        if (at->on_gpu == on_gpu && offset <= at->bytes && bytes <= at->bytes - offset)
            return (void *)(uintptr_t)address;
    }
    wrong("an address is wrong:", on_gpu ? "of the GPU" : "here");
    return NULL;
}

#include "ptx.h"

/* ---- streams ---- */

struct Task {
    const struct Function *function; /* or a copy */
    int to_gpu;
    u64 from, to, bytes;
    u32 blocks, threads;
    u64 parameters[16];
    struct Task *next;
};

struct Stream {
    struct Task *first, **last;
};

static void push(struct Stream *stream, struct Task task) {
    *stream->last = malloc(sizeof task);
    **stream->last = task;
    stream->last = &(*stream->last)->next;
}

static void run(struct Task *task) {
    if (!task->function) {
        void *from = checked(!task->to_gpu, task->from, task->bytes), *to = checked(task->to_gpu, task->to, task->bytes);
        memcpy(to, from, task->bytes);
        return;
    }
    for (u32 block = 0; block < task->blocks; block++)
        for (u32 thread = 0; thread < task->threads; thread++) {
            u64 special[] = {thread, task->threads, block, task->blocks};
            run_thread(task->function, task->parameters, special);
        }
}

/* ---- the driver ---- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static __thread void *current;
static __thread int depth;
static char the_context;
static int retained, modules, streams, failing;

static struct { const char *name; int calls; } calls[32];

/* Counts the call; the number that it fails with, if it shall. */
static int called(const char *name) {
    int at = 0, n, code;
    while (calls[at].name && strcmp(calls[at].name, name))
        at++;
    calls[at].name = name;
    calls[at].calls++;
    if (failing)
        return failing;
    char wanted[64];
    const char *fail = getenv("M2PT_CUDA_FAIL");
    if (fail && sscanf(fail, "%63[^:]:%d:%d", wanted, &n, &code) == 3 && !strcmp(wanted, name) && n == calls[at].calls) {
        if (code != OUT_OF_MEMORY)
            failing = code;
        return code;
    }
    return 0;
}

#define CALL(name, ...) __attribute__((visibility("default"))) int name(__VA_ARGS__)
#define BEGIN                                  \
    pthread_mutex_lock(&lock);                 \
    int code = called(__func__);
#define END                        \
    pthread_mutex_unlock(&lock);   \
    return code;
#define BEGIN_IN_CONTEXT           \
    BEGIN                          \
    if (!code && current != &the_context) code = NO_CONTEXT;

CALL(cuInit, unsigned flags) {
    BEGIN
    if (!code && (flags || limit("M2PT_CUDA_DEVICES") == 0))
        code = NO_DEVICE;
    END
}

CALL(cuDeviceGetCount, int *count) {
    BEGIN
    *count = getenv("M2PT_CUDA_DEVICES") ? atoi(getenv("M2PT_CUDA_DEVICES")) : 1;
    END
}

CALL(cuDeviceGet, int *device, int number) {
    BEGIN
    *device = number + 70;
    END
}

CALL(cuDevicePrimaryCtxRetain, void **context, int device) {
    BEGIN
    if (device < 70)
        wrong("no such device", "");
    if (!code) {
        retained++;
        *context = &the_context;
    }
    END
}

CALL(cuDevicePrimaryCtxRelease_v2, int device) {
    BEGIN
    if (depth && !failing)
        wrong("a context is released that was not left", "");
    retained -= device >= 70;
    FILE *log = getenv("M2PT_CUDA_LOG") ? fopen(getenv("M2PT_CUDA_LOG"), "w") : NULL;
    for (int i = 0; log && calls[i].name; i++)
        fprintf(log, "%s %d\n", calls[i].name, calls[i].calls);
    if (log && (retained || modules || streams || memories))
        fprintf(log, "left %d contexts, %d modules, %d streams, %zu and %zu bytes\n", retained, modules, streams, used[0], used[1]);
    if (log)
        fclose(log);
    END
}

CALL(cuCtxPushCurrent_v2, void *context) {
    BEGIN
    if (!code) {
        current = context;
        depth++;
    }
    END
}

CALL(cuCtxPopCurrent_v2, void **context) {
    BEGIN
    if (depth < 1)
        wrong("a context is left that was not entered", "");
    *context = current;
    current = --depth ? current : NULL;
    END
}

CALL(cuModuleLoadData, void **module, const void *ptx) {
    BEGIN_IN_CONTEXT
    if (!code) {
        *module = module_of(ptx);
        modules++;
    }
    END
}

CALL(cuModuleUnload, void *module) {
    BEGIN_IN_CONTEXT
    if (!code) {
        struct Module *gone = module;
        for (int i = 0; i < gone->functions; i++)
            free(gone->function[i].code);
        free(gone);
        modules--;
    }
    END
}

CALL(cuModuleGetFunction, void **function, void *handle, const char *name) {
    BEGIN_IN_CONTEXT
    struct Module *module = handle;
    if (!code) {
        code = NOT_FOUND;
        for (int i = 0; i < module->functions; i++)
            if (!strcmp(module->function[i].name, name)) {
                *function = &module->function[i];
                code = 0;
            }
    }
    END
}

CALL(cuStreamCreate, void **stream, unsigned flags) {
    BEGIN_IN_CONTEXT
    if (!code) {
        struct Stream *made = calloc(1, sizeof *made);
        made->last = &made->first;
        *stream = made;
        streams += flags <= 1;
    }
    END
}

CALL(cuStreamDestroy_v2, void *handle) {
    BEGIN_IN_CONTEXT
    struct Stream *stream = handle;
    if (!code) {
        if (stream->first)
            wrong("a stream is destroyed that is at work", "");
        free(stream);
        streams--;
    }
    END
}

CALL(cuStreamSynchronize, void *handle) {
    BEGIN_IN_CONTEXT
    struct Stream *stream = handle;
    while (!code && stream->first) {
        struct Task *task = stream->first;
        run(task);
        stream->first = task->next;
        free(task);
    }
    if (!stream->first)
        stream->last = &stream->first;
    END
}

CALL(cuMemAlloc_v2, u64 *address, size_t bytes) {
    BEGIN_IN_CONTEXT
    void *memory = NULL;
    if (!code && !(code = allocate(1, &memory, bytes)))
        *address = (u64)(uintptr_t)memory;
    END
}

CALL(cuMemFree_v2, u64 address) {
    BEGIN_IN_CONTEXT
    if (!code)
        code = release(1, (void *)(uintptr_t)address);
    END
}

CALL(cuMemHostAlloc, void **memory, size_t bytes, unsigned flags) {
    BEGIN_IN_CONTEXT
    if (!code)
        code = flags ? INVALID : allocate(0, memory, bytes);
    END
}

CALL(cuMemFreeHost, void *memory) {
    BEGIN_IN_CONTEXT
    if (!code)
        code = release(0, memory);
    END
}

CALL(cuMemcpyHtoDAsync_v2, u64 to, const void *from, size_t bytes, void *stream) {
    BEGIN_IN_CONTEXT
    if (!code) {
        checked(0, (u64)(uintptr_t)from, bytes);
        checked(1, to, bytes);
        push(stream, (struct Task){.to_gpu = 1, .from = (u64)(uintptr_t)from, .to = to, .bytes = bytes});
    }
    END
}

CALL(cuMemcpyDtoHAsync_v2, void *to, u64 from, size_t bytes, void *stream) {
    BEGIN_IN_CONTEXT
    if (!code) {
        checked(1, from, bytes);
        checked(0, (u64)(uintptr_t)to, bytes);
        push(stream, (struct Task){.to_gpu = 0, .from = from, .to = (u64)(uintptr_t)to, .bytes = bytes});
    }
    END
}

CALL(cuLaunchKernel, void *handle, unsigned bx, unsigned by, unsigned bz, unsigned tx, unsigned ty, unsigned tz, unsigned shared,
     void *stream, void **parameters, void **extra) {
    BEGIN_IN_CONTEXT
    struct Function *function = handle;
    if (!code && (!bx || !tx || tx > 1024 || by != 1 || bz != 1 || ty != 1 || tz != 1 || shared || extra))
        code = INVALID;
    if (!code) {
        struct Task task = {.function = function, .blocks = bx, .threads = tx};
        for (int i = 0; i < function->parameters; i++)
            memcpy(&task.parameters[i], parameters[i], (size_t)function->parameter_bits[i] / 8);
        push(stream, task);
    }
    END
}

__attribute__((visibility("default"))) int cuGetErrorString(int code, const char **text) {
    *text = code == OUT_OF_MEMORY ? "out of memory" : code == 700 ? "an illegal memory access was encountered" : NULL;
    return *text ? 0 : INVALID;
}
