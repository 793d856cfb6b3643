/* What this CPU executes, what the compiler is told about a target, and the machine's profile.
 *
 *     level  1  every x86-64           4  v3 + AVX-512 F BW CD DQ VL
 *            2  + SSE4.2, POPCNT, ...  bf16, vnni: on top of 4
 *            3  + AVX2, FMA, BMI, ...  amx: tiles with bf16 and int8
 *
 * A level counts only if the CPU has every instruction set of it (cpuid) and the kernel saves its
 * registers (xgetbv; for AMX also arch_prctl, which grants them to the process). Reading a flag
 * alone is how programs die of SIGILL under hypervisors that hide half of AVX-512.
 *
 * The profile's name keys tuned configs: it is made of what decides speed and does not change from
 * run to run. Clock rates, load and memory in use are left out; the thread count is in. */
#define _GNU_SOURCE
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#ifdef __x86_64__
#include <cpuid.h>
#endif

#include "jit/cpu/cpu.h"
#include "jit/target.h"

/* ---- The instruction set ------------------------------------------------------------------- */

#ifdef __x86_64__

enum cpuid_register { EAX, EBX, ECX, EDX };
/* Pages of cpuid. Each is read once: a hypervisor may take 10 us for it. */
enum leaf { LEAF_1, LEAF_7, LEAF_7_1, LEAF_EXTENDED, LEAF_COUNT };
enum {
    /* Bits of XCR0: register files that the kernel saves. */
    SAVES_YMM = 0x6,
    SAVES_ZMM = 0xe6,
    SAVES_TILES = 0x60000,
    /* Linux: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA). */
    REQUEST_PERMISSION = 0x1023,
    TILE_DATA = 18
};

/* The instruction sets of the x86-64 psABI's levels 2 to 4, then of the features (level 0). */
static const struct instruction_set {
    int level, feature;
    enum leaf leaf;
    enum cpuid_register where;
    int bit;
} instruction_sets[] = {
    { 2, 0, LEAF_1, ECX, 0 },                /* SSE3 */
    { 2, 0, LEAF_1, ECX, 9 },                /* SSSE3 */
    { 2, 0, LEAF_1, ECX, 13 },               /* CMPXCHG16B */
    { 2, 0, LEAF_1, ECX, 19 },               /* SSE4.1 */
    { 2, 0, LEAF_1, ECX, 20 },               /* SSE4.2 */
    { 2, 0, LEAF_1, ECX, 23 },               /* POPCNT */
    { 2, 0, LEAF_EXTENDED, ECX, 0 },         /* LAHF */
    { 3, 0, LEAF_1, ECX, 12 },               /* FMA */
    { 3, 0, LEAF_1, ECX, 22 },               /* MOVBE */
    { 3, 0, LEAF_1, ECX, 27 },               /* OSXSAVE */
    { 3, 0, LEAF_1, ECX, 28 },               /* AVX */
    { 3, 0, LEAF_1, ECX, 29 },               /* F16C */
    { 3, 0, LEAF_7, EBX, 3 },                /* BMI1 */
    { 3, 0, LEAF_7, EBX, 5 },                /* AVX2 */
    { 3, 0, LEAF_7, EBX, 8 },                /* BMI2 */
    { 3, 0, LEAF_EXTENDED, ECX, 5 },         /* LZCNT */
    { 4, 0, LEAF_7, EBX, 16 },               /* AVX512F */
    { 4, 0, LEAF_7, EBX, 17 },               /* AVX512DQ */
    { 4, 0, LEAF_7, EBX, 28 },               /* AVX512CD */
    { 4, 0, LEAF_7, EBX, 30 },               /* AVX512BW */
    { 4, 0, LEAF_7, EBX, 31 },               /* AVX512VL */
    { 0, QUERN_CPU_VNNI, LEAF_7, ECX, 11 },  /* AVX512_VNNI */
    { 0, QUERN_CPU_BF16, LEAF_7_1, EAX, 5 }, /* AVX512_BF16 */
    { 0, QUERN_CPU_AMX, LEAF_7, EDX, 22 },   /* AMX_BF16 */
    { 0, QUERN_CPU_AMX, LEAF_7, EDX, 24 },   /* AMX_TILE */
    { 0, QUERN_CPU_AMX, LEAF_7, EDX, 25 },   /* AMX_INT8 */
};

/* What cpuid says; a leaf that the CPU does not have is zero. */
struct cpu {
    unsigned leaves[LEAF_COUNT][4];
    uint64_t saved; /* XCR0: which registers the kernel saves */
};

static void read_leaf(struct cpu *cpu, enum leaf leaf, unsigned number, unsigned page)
{
    unsigned *registers = cpu->leaves[leaf];

    if (!__get_cpuid_count(number, page, &registers[EAX], &registers[EBX], &registers[ECX],
                           &registers[EDX]))
        memset(registers, 0, sizeof cpu->leaves[leaf]);
}

static void read_cpu(struct cpu *cpu)
{
    unsigned low, high;

    memset(cpu, 0, sizeof *cpu);
    read_leaf(cpu, LEAF_1, 1, 0);
    read_leaf(cpu, LEAF_7, 7, 0);
    if (cpu->leaves[LEAF_7][EAX] >= 1)
        read_leaf(cpu, LEAF_7_1, 7, 1);
    read_leaf(cpu, LEAF_EXTENDED, 0x80000001, 0);
    if (!(cpu->leaves[LEAF_1][ECX] >> 27 & 1)) /* OSXSAVE: without it, no xgetbv */
        return;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    cpu->saved = (uint64_t)high << 32 | low;
}

/* All of one level, or of one feature (with level 0), and the registers that they need. */
static int has_all(const struct cpu *cpu, int level, int feature, uint64_t needed)
{
    int has = (cpu->saved & needed) == needed;

    for (size_t i = 0; i < sizeof instruction_sets / sizeof instruction_sets[0]; i++) {
        const struct instruction_set *set = &instruction_sets[i];
        if (set->level == level && set->feature == feature)
            has &= cpu->leaves[set->leaf][set->where] >> set->bit & 1;
    }
    return has;
}

static int detect_level(const struct cpu *cpu)
{
    if (!has_all(cpu, 2, 0, 0))
        return 1;
    if (!has_all(cpu, 3, 0, SAVES_YMM))
        return 2;
    return has_all(cpu, 4, 0, SAVES_ZMM) ? 4 : 3;
}

void qn_cpu_target_detect(struct quern_target *target)
{
    struct cpu cpu;

    read_cpu(&cpu);
    memset(target, 0, sizeof *target);
    target->kind = QUERN_CPU;
    target->cpu_level = detect_level(&cpu);
    if (target->cpu_level < 4)
        return;
    if (has_all(&cpu, 0, QUERN_CPU_BF16, SAVES_ZMM))
        target->cpu_features |= QUERN_CPU_BF16;
    if (has_all(&cpu, 0, QUERN_CPU_VNNI, SAVES_ZMM))
        target->cpu_features |= QUERN_CPU_VNNI;
    if (has_all(&cpu, 0, QUERN_CPU_AMX, SAVES_TILES) &&
        !syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA))
        target->cpu_features |= QUERN_CPU_AMX;
}

#else

void qn_cpu_target_detect(struct quern_target *target)
{
    memset(target, 0, sizeof *target);
    target->kind = QUERN_CPU;
    target->cpu_arch = 1;
}

#endif

int qn_cpu_target_accepts(const struct quern_target *host, const struct quern_target *target,
                          struct quern_message *why)
{
    char have[QN_TARGET_TEXT_BYTES], want[QN_TARGET_TEXT_BYTES];
    int lacking = target->cpu_features & ~host->cpu_features;

    qn_target_format(host, have, sizeof have);
    qn_target_format(target, want, sizeof want);
    if (target->kind != QUERN_CPU || target->cpu_arch != host->cpu_arch)
        return quern_refuse(why, "target=%s: this device is %s, another architecture", want, have);
    if (target->cpu_level > host->cpu_level)
        return quern_refuse(why, "target=%s: this CPU is %s and lacks x86-64-v%d", want, have,
                            target->cpu_level);
    if (lacking)
        return quern_refuse(why, "target=%s: this CPU is %s and lacks%s%s%s", want, have,
                            lacking & QUERN_CPU_BF16 ? " bf16" : "",
                            lacking & QUERN_CPU_VNNI ? " vnni" : "",
                            lacking & QUERN_CPU_AMX ? " amx" : "");
    return 0;
}

/* ---- The compiler's options ---------------------------------------------------------------- */

/* -nostdlibinc: no header of the machine that compiles, so that the flattened source and the
 * compiler are all that the object depends on. */
void qn_cpu_target_options(const struct quern_target *target, char *text, size_t bytes)
{
    static const char common[] =
        "-std=gnu11 -O3 -ffreestanding -nostdlibinc -fPIC -ffp-contract=fast -fno-math-errno "
        "-fno-asynchronous-unwind-tables -fno-stack-protector";
    static const char *const levels[] = { "x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4" };
    int features = target->cpu_features;

    if (target->cpu_arch == 1) {
        snprintf(text, bytes, "--target=aarch64-unknown-linux-gnu %s -march=armv8-a", common);
        return;
    }
    snprintf(text, bytes, "--target=x86_64-unknown-linux-gnu %s%s -march=%s%s%s%s", common,
             target->cpu_level == 4 ? " -mprefer-vector-width=512" : "",
             levels[target->cpu_level - 1], features & QUERN_CPU_BF16 ? " -mavx512bf16" : "",
             features & QUERN_CPU_VNNI ? " -mavx512vnni" : "",
             features & QUERN_CPU_AMX ? " -mamx-tile -mamx-bf16 -mamx-int8" : "");
}

/* ---- The profile --------------------------------------------------------------------------- */

/* One line of /sys/devices/system/cpu/cpu0/cache/index<index>/<field>; 0 if there is none. */
static int sysfs_cache_read(int index, const char *field, char *value, int bytes)
{
    char path[96];

    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/%s", index, field);
    FILE *file = fopen(path, "re");
    if (!file)
        return 0;
    int is_read = fgets(value, bytes, file) != NULL;
    fclose(file);
    return is_read;
}

/* Sizes are written as "48K". 0 if the kernel does not say. */
static int64_t sysfs_cache_bytes(int level)
{
    char found[16], type[16], size[32];

    for (int index = 0; sysfs_cache_read(index, "level", found, sizeof found); index++)
        if (atoi(found) == level && sysfs_cache_read(index, "type", type, sizeof type) &&
            strncmp(type, "Instruction", 11) && sysfs_cache_read(index, "size", size, sizeof size))
            return strtoll(size, NULL, 10) << (strchr(size, 'M') ? 20 : 10);
    return 0;
}

/* The C library knows from cpuid where there is one; sysfs knows elsewhere. */
static int64_t cache_bytes(int level)
{
    static const int names[] = { _SC_LEVEL1_DCACHE_SIZE, _SC_LEVEL2_CACHE_SIZE,
                                 _SC_LEVEL3_CACHE_SIZE };
    int64_t bytes = sysconf(names[level - 1]);
    return bytes > 0 ? bytes : sysfs_cache_bytes(level);
}

/* " l2=2M", nothing when unknown. */
static void cache_text(const char *name, int64_t cache, char *text, size_t bytes)
{
    int is_mega = cache >= 1 << 20 && cache % (1 << 20) == 0;

    text[0] = 0;
    if (cache)
        snprintf(text, bytes, " %s=%lld%c", name, (long long)(cache >> (is_mega ? 20 : 10)),
                 is_mega ? 'M' : 'K');
}

#ifdef __x86_64__

/* Drop what does not tell machines apart, "(R)", "CPU" and what follows "@", and extra blanks. */
static void tidy_brand(const char *brand, char *text, size_t bytes)
{
    static const char *const noise[] = { "(R)", "(TM)", "(r)", "(tm)", "CPU " };
    size_t length = 0;

    while (*brand && *brand != '@' && length + 1 < bytes) {
        size_t skip = 0;
        for (size_t i = 0; i < sizeof noise / sizeof noise[0] && !skip; i++)
            if (!strncmp(brand, noise[i], strlen(noise[i])))
                skip = strlen(noise[i]);
        if (!skip && (!isspace((unsigned char)*brand) || (length && text[length - 1] != ' ')))
            text[length++] = isspace((unsigned char)*brand) ? ' ' : *brand;
        brand += skip ? skip : 1;
    }
    while (length && text[length - 1] == ' ')
        length--;
    text[length] = 0;
}

/* "Intel Xeon Processor 6.173.1": brand, then family.model.stepping as cpuid encodes them. */
static void model_text(char *text, size_t bytes)
{
    unsigned brand[13] = { 0 }, eax = 0, ebx, ecx, edx;
    char tidy[49];

    for (unsigned i = 0; i < 3; i++)
        __get_cpuid(0x80000002 + i, &brand[4 * i], &brand[4 * i + 1], &brand[4 * i + 2],
                    &brand[4 * i + 3]);
    tidy_brand((const char *)brand, tidy, sizeof tidy);
    __get_cpuid(1, &eax, &ebx, &ecx, &edx);
    unsigned family = eax >> 8 & 15, model = eax >> 4 & 15;
    if (family == 6 || family == 15)
        model |= eax >> 12 & 0xf0;
    if (family == 15)
        family += eax >> 20 & 0xff;
    snprintf(text, bytes, "%s %u.%u.%u", *tidy ? tidy : "x86-64", family, model, eax & 15);
}

#else

/* "aarch64 0x41.0xd40": implementer and part of the first processor in /proc/cpuinfo. */
static void model_text(char *text, size_t bytes)
{
    char line[256];
    unsigned implementer = 0, part = 0;
    FILE *file = fopen("/proc/cpuinfo", "re");

    while (file && !part && fgets(line, sizeof line, file))
        if (sscanf(line, "CPU implementer : %x", &implementer) != 1)
            sscanf(line, "CPU part : %x", &part);
    if (file)
        fclose(file);
    snprintf(text, bytes, "aarch64 0x%02x.0x%03x", implementer, part);
}

#endif

void qn_cpu_profile_detect(int threads, struct quern_profile *profile)
{
    char model[64], l2[24], l3[24];

    memset(profile, 0, sizeof *profile);
    profile->kind = QUERN_CPU;
    profile->cores = threads;
    profile->l1_bytes = cache_bytes(1);
    profile->l2_bytes = cache_bytes(2);
    profile->l3_bytes = cache_bytes(3);
    model_text(model, sizeof model);
    cache_text("l2", profile->l2_bytes, l2, sizeof l2);
    cache_text("l3", profile->l3_bytes, l3, sizeof l3);
    /* Cut the model rather than what follows it. */
    snprintf(profile->name, sizeof profile->name, "%.48s%s%s threads=%d", model, l2, l3, threads);
}
