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

/* ---- PTX ---- */

enum Kind { REGISTER, NUMBER, SPECIAL, PARAMETER };
enum { TID, NTID, CTAID, NCTAID };

struct Operand {
    enum Kind kind;
    u64 value; /* the register, the number's bits, which special register, or which parameter */
    u64 offset;
};

struct Type {
    char class; /* u, s, b, f, or p for predicates */
    int bits;
};

struct Instruction {
    char name[12], how[8]; /* "setp", "gt" */
    int guard, negated;    /* the register of the predicate, or -1 */
    struct Type type, from;
    int operands, vector;
    struct Operand operand[5];
    int target;
    char label[32];
    int code;
};

struct Function {
    char name[32];
    int instructions, registers;
    struct Instruction *code;
    int parameters, parameter_bits[16];
};

struct Module {
    int functions;
    struct Function function[8];
};

enum { BRA, RET, LD_PARAM, LD, ST, MOV, CVT, ADD, SUB, MUL, WIDE, AND, OR, NOT, SHL, SHR, BFE, SELP, SETP };

static int type_of(const char *text, struct Type *type) {
    if (!strcmp(text, "pred"))
        *type = (struct Type){'p', 1};
    else if (strchr("usbf", text[0]) && text[0] && (!strcmp(text + 1, "16") || !strcmp(text + 1, "32") || !strcmp(text + 1, "64")))
        *type = (struct Type){text[0], atoi(text + 1)};
    else
        return 0;
    return 1;
}

struct Names {
    int count;
    char name[1024][12];
};

static int register_of(struct Names *names, const char *text) {
    for (int i = 0; i < names->count; i++)
        if (!strcmp(names->name[i], text))
            return i;
    if (names->count == 1024 || strlen(text) > 11)
        wrong("too many registers, or a name too long:", text);
    strcpy(names->name[names->count], text);
    return names->count++;
}

static struct Operand operand_of(struct Names *names, const char *text) {
    static const char *special[] = {"%tid.x", "%ntid.x", "%ctaid.x", "%nctaid.x"};
    for (int i = 0; i < 4; i++)
        if (!strcmp(text, special[i]))
            return (struct Operand){SPECIAL, (u64)i, 0};
    if (text[0] == '%') {
        char name[32];
        const char *plus = strchr(text, '+');
        snprintf(name, sizeof name, "%.*s", (int)(plus ? plus - text : 31), text);
        return (struct Operand){REGISTER, (u64)register_of(names, name), plus ? (u64)strtoll(plus + 1, NULL, 10) : 0};
    }
    if (text[0] == '0' && (text[1] == 'f' || text[1] == 'd'))
        return (struct Operand){NUMBER, strtoull(text + 2, NULL, 16), 0};
    const char *parameter = strstr(text, "_param_");
    if (parameter)
        return (struct Operand){PARAMETER, strtoull(parameter + 7, NULL, 10), 0};
    char *end;
    u64 number = (u64)strtoll(text, &end, 10);
    if (end == text || *end)
        wrong("unknown operand", text);
    return (struct Operand){NUMBER, number, 0};
}

static int code_of(const struct Instruction *in) {
    static const struct { const char *name; int code; } known[] = {
        {"bra", BRA}, {"ret", RET}, {"ld", LD}, {"st", ST}, {"mov", MOV}, {"cvta", MOV}, {"cvt", CVT}, {"add", ADD}, {"sub", SUB},
        {"mul", MUL}, {"and", AND}, {"or", OR}, {"not", NOT}, {"shl", SHL}, {"shr", SHR}, {"bfe", BFE}, {"selp", SELP}, {"setp", SETP},
    };
    if (!strcmp(in->name, "ld") && !strcmp(in->how, "param"))
        return LD_PARAM;
    if (!strcmp(in->name, "mul") && !strcmp(in->how, "wide"))
        return WIDE;
    /* Sums and products of floats have to say how they are rounded, and integers that only half of the product is wanted. */
    int arithmetic = !strcmp(in->name, "add") || !strcmp(in->name, "sub") || !strcmp(in->name, "mul");
    if (arithmetic && in->type.class == 'f' && strcmp(in->how, "rn"))
        wrong("an operation that may be fused:", in->name);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(in->name, known[i].name))
            return known[i].code;
    wrong("unknown instruction", in->name);
    return 0;
}

static struct Instruction instruction_of(struct Names *names, char *line) {
    struct Instruction in = {.guard = -1, .target = -1};
    char *rest = line, *word;
    if (*rest == '@') {
        word = strsep(&rest, " ");
        in.negated = word[1] == '!';
        in.guard = register_of(names, word + 1 + in.negated);
    }
    while (*rest == ' ' || *rest == '\t')
        rest++;
    word = strsep(&rest, " \t");
    int types = 0;
    for (char *part = strsep(&word, "."); part; part = strsep(&word, ".")) {
        struct Type type;
        if (!in.name[0])
            snprintf(in.name, sizeof in.name, "%s", part);
        else if (type_of(part, &type)) {
            if (types++ == 0)
                in.type = type;
            in.from = type;
        } else if (!strcmp(part, "v2"))
            in.vector = 2;
        else if (!strcmp(part, "ftz") || !strcmp(part, "approx") || !strcmp(part, "sat"))
            wrong("another arithmetic:", part);
        else if (!in.how[0])
            snprintf(in.how, sizeof in.how, "%s", part);
    }
    in.code = code_of(&in);
    while (rest && (word = strsep(&rest, ", \t{}[]"))) {
        if (!*word)
            continue;
        if (in.code == BRA)
            snprintf(in.label, sizeof in.label, "%s", word);
        else if (in.operands == 5)
            wrong("too many operands:", in.name);
        else
            in.operand[in.operands++] = operand_of(names, word);
    }
    return in;
}

static struct Module *module_of(const char *ptx) {
    struct Module *module = calloc(1, sizeof *module);
    struct Function *function = NULL;
    struct Names *names = NULL;
    struct { char name[32]; int at; } labels[512];
    int count = 0;
    char *text = strdup(ptx), *rest = text, *line;
    while ((line = strsep(&rest, "\n"))) {
        char *comment = strstr(line, "//");
        if (comment)
            *comment = 0;
        line += strspn(line, " \t");
        line[strcspn(line, ";")] = 0;
        for (size_t end = strlen(line); end && strchr(" \t\r", line[end - 1]); end--)
            line[end - 1] = 0;
        if (!strncmp(line, ".visible .entry ", 16)) {
            function = &module->function[module->functions++];
            sscanf(line + 16, "%31[^(]", function->name);
            function->code = calloc(4096, sizeof *function->code);
            names = calloc(1, sizeof *names);
            count = 0;
        } else if (!strncmp(line, ".param ", 7)) {
            struct Type type;
            char word[8];
            if (sscanf(line, ".param .%7s", word) != 1 || !type_of(word, &type) || function->parameters == 16)
                wrong("unknown parameter:", line);
            function->parameter_bits[function->parameters++] = type.bits;
        } else if (function && *line == '}') {
            for (int i = 0; i < function->instructions; i++)
                for (int label = 0; function->code[i].code == BRA && label < count; label++)
                    if (!strcmp(labels[label].name, function->code[i].label))
                        function->code[i].target = labels[label].at;
            for (int i = 0; i < function->instructions; i++)
                if (function->code[i].code == BRA && function->code[i].target < 0)
                    wrong("no such label:", function->code[i].label);
            function->registers = names->count;
            free(names);
            function = NULL;
        } else if (!function || !*line || strchr("{().", *line)) {
            continue;
        } else if (line[strlen(line) - 1] == ':') {
            snprintf(labels[count].name, sizeof labels[count].name, "%.*s", (int)strlen(line) - 1, line);
            labels[count++].at = function->instructions;
        } else {
            if (function->instructions == 4096 || count == 512)
                wrong("a function is too long:", function->name);
            function->code[function->instructions++] = instruction_of(names, line);
        }
    }
    free(text);
    return module;
}

static u64 bits_f32(float value) {
    u32 bits;
    memcpy(&bits, &value, 4);
    return value != value ? 0x7fffffff : bits;
}

static u64 bits_f64(double value) {
    u64 bits;
    memcpy(&bits, &value, 8);
    return value != value ? 0x7fffffffffffffff : bits;
}

static double number(struct Type type, u64 bits) {
    if (type.class == 'f' && type.bits == 64) {
        double value;
        memcpy(&value, &bits, 8);
        return value;
    }
    if (type.class == 'f' && type.bits == 32) {
        u32 narrow = (u32)bits;
        float value;
        memcpy(&value, &narrow, 4);
        return value;
    }
    return (double)bits;
}

static u64 masked(int bits, u64 value) {
    return bits == 64 ? value : value & (((u64)1 << bits) - 1);
}

static u64 arithmetic(const struct Instruction *in, u64 a, u64 b) {
    int code = in->code == WIDE ? MUL : in->code;
    if (in->type.class == 'f') {
        double x = number(in->type, a), y = number(in->type, b);
        if (in->type.bits == 64)
            return bits_f64(code == ADD ? x + y : code == SUB ? x - y : x * y);
        float p = (float)x, q = (float)y;
        return bits_f32(code == ADD ? p + q : code == SUB ? p - q : p * q);
    }
    u64 result = code == ADD ? a + b : code == SUB ? a - b : a * b;
    return in->code == WIDE ? result : masked(in->type.bits, result);
}

static u64 converted(const struct Instruction *in, u64 value) {
    if (in->from.class == 's')
        wrong("conversion of a signed number:", in->name);
    double from = number(in->from, value);
    if (in->type.class != 'f' && in->from.class == 'f')
        wrong("conversion to an integer:", in->name);
    if (in->type.class != 'f')
        return masked(in->type.bits, value);
    return in->type.bits == 64 ? bits_f64(from) : bits_f32((float)from);
}

static u64 compared(const struct Instruction *in, u64 a, u64 b) {
    const char *how = in->how;
    if (in->type.class == 'f') {
        double x = number(in->type, a), y = number(in->type, b);
        if (!strcmp(how, "eq"))
            return x == y;
        if (!strcmp(how, "neu"))
            return x != y;
    } else if (in->type.class == 'u' || !strcmp(how, "eq") || !strcmp(how, "ne")) {
        if (!strcmp(how, "eq"))
            return a == b;
        if (!strcmp(how, "ne"))
            return a != b;
        if (!strcmp(how, "gt"))
            return a > b;
        if (!strcmp(how, "lt"))
            return a < b;
        if (!strcmp(how, "ge"))
            return a >= b;
        if (!strcmp(how, "le"))
            return a <= b;
    }
    wrong("unknown comparison", how);
    return 0;
}

/* One thread of a kernel. */
static void run_thread(const struct Function *function, const u64 *parameters, const u64 *special) {
    u64 *registers = alloca((size_t)function->registers * sizeof *registers);
    memset(registers, 0x5a, (size_t)function->registers * sizeof *registers);
    for (int at = 0; at < function->instructions;) {
        const struct Instruction *in = &function->code[at++];
        if (in->guard >= 0 && (registers[in->guard] != 0) == in->negated)
            continue;
        u64 value[5];
        int width = in->code == CVT ? in->from.bits : in->type.bits;
        for (int i = 0; i < in->operands; i++) {
            const struct Operand *operand = &in->operand[i];
            switch (operand->kind) {
            case REGISTER:
                value[i] = registers[operand->value];
                break;
            case NUMBER:
                value[i] = masked(width, operand->value);
                break;
            case SPECIAL:
                value[i] = special[operand->value];
                break;
            case PARAMETER:
                value[i] = parameters[operand->value];
                break;
            }
        }
        u64 result;
        switch (in->code) {
        case BRA:
            at = in->target;
            continue;
        case RET:
            return;
        case LD:
        case ST: {
            int bytes = in->type.bits / 8, parts = in->vector ? in->vector : 1, loads = in->code == LD;
            const struct Operand *place = &in->operand[loads ? parts : 0];
            u64 address = registers[place->value] + place->offset;
            if (address % (u64)(bytes * parts))
                wrong("an address is not aligned:", function->name);
            char *memory = checked(1, address, (u64)(bytes * parts));
            for (int i = 0; i < parts; i++) {
                if (loads) {
                    registers[in->operand[i].value] = 0;
                    memcpy(&registers[in->operand[i].value], memory + i * bytes, (size_t)bytes);
                } else
                    memcpy(memory + i * bytes, &value[i + 1], (size_t)bytes);
            }
            continue;
        }
        case LD_PARAM:
        case MOV:
            result = value[1];
            break;
        case CVT:
            result = converted(in, value[1]);
            break;
        case ADD:
        case SUB:
        case MUL:
        case WIDE:
            result = arithmetic(in, value[1], value[2]);
            break;
        case AND:
            result = value[1] & value[2];
            break;
        case OR:
            result = value[1] | value[2];
            break;
        case NOT:
            result = masked(width, ~value[1]);
            break;
        case SHL:
            result = value[2] >= (u64)width ? 0 : masked(width, value[1] << value[2]);
            break;
        case SHR:
            if (in->type.class == 's')
                wrong("a signed shift:", function->name);
            result = value[2] >= (u64)width ? 0 : value[1] >> value[2];
            break;
        case BFE:
            result = masked((int)value[3], value[1] >> value[2]);
            break;
        case SELP:
            result = value[3] ? value[1] : value[2];
            break;
        default:
            result = compared(in, value[1], value[2]);
        }
        registers[in->operand[0].value] = result;
    }
}

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
