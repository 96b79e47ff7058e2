/* Reads PTX and runs it, an instruction at a time: as much of it as the kernels of src/engine/cuda/fold.ptx use. Part of driver.c, which
 * has the memory that it works in.
 */

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
