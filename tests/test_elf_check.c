/* What objects are let through to the linker: what our targets compile to, and no lie about it. */
#define _GNU_SOURCE
#include <check.h>
#include <elf.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "jit/cpu/cpu.h"
#include "jit/target.h"
#include "tests/cpu_object.h"

static const char plain_source[] =
    "struct args { float *y; const float *x; float a; int n; };\n"
    "void axpy(const void *p, unsigned x, unsigned y, unsigned z)\n"
    "{ const struct args *g = p; for (int i = x * 64; i < g->n && i < x * 64 + 64; i++)\n"
    "  g->y[i] += g->a * g->x[i]; }\n";

START_TEST(every_target_compiles_here_and_passes_the_check)
{
    static const char *const texts[] = { "cpu:x86-64-v1",
                                         "cpu:x86-64-v2",
                                         "cpu:x86-64-v3",
                                         "cpu:x86-64-v4",
                                         "cpu:x86-64-v4+bf16+vnni+amx",
                                         "cpu:aarch64" };

    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        struct quern_target target;
        struct quern_message why = { "" };
        const char *function = NULL;
        ck_assert_int_eq(qn_target_parse(texts[i], &target, &why), 0);
        struct cpu_object blob = cpu_object_make(&target, plain_source);
        ck_assert_msg(!qn_elf_check(blob.data, blob.bytes, &target, &function, &why), "%s: %s",
                      texts[i], why.text);
        ck_assert_str_eq(function, "axpy");
        free(blob.data);
    }
}
END_TEST

/* A copy of the first `bytes` of a blob that ends where readable memory ends. */
struct fenced {
    unsigned char *pages, *data;
    size_t page_bytes;
};

static struct fenced fence(const struct cpu_object *blob, size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), used = (bytes + page - 1) / page * page;
    struct fenced fenced = { .page_bytes = used + page };

    fenced.pages =
        mmap(NULL, fenced.page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ck_assert(fenced.pages != MAP_FAILED);
    ck_assert_int_eq(mprotect(fenced.pages + used, page, PROT_NONE), 0);
    fenced.data = fenced.pages + used - bytes;
    memcpy(fenced.data, blob->data, bytes);
    return fenced;
}

START_TEST(damaged_objects_are_checked_without_a_read_out_of_bounds)
{
    struct quern_target target = { .cpu_level = 3 };
    struct cpu_object blob = cpu_object_make(&target, cpu_object_varied_source);
    struct quern_message why;
    const char *function;
    unsigned state = cpu_object_dice();
    int refused = 0;

    ck_assert_int_eq(qn_elf_check(blob.data, blob.bytes, &target, &function, &why), 0);
    for (int i = 0; i < 4000; i++) {
        struct fenced copy = fence(&blob, blob.bytes);
        cpu_object_damage(copy.data, blob.bytes, &state);
        refused += qn_elf_check(copy.data, blob.bytes, &target, &function, &why) != 0;
        munmap(copy.pages, copy.page_bytes);
    }
    ck_assert_int_gt(refused, 400); /* most changes to code and names are harmless */
    for (size_t bytes = 0; bytes < blob.bytes; bytes += 1 + bytes / 40) {
        struct fenced copy = fence(&blob, bytes);
        ck_assert_int_eq(qn_elf_check(copy.data, bytes, &target, &function, &why), QUERN_LOAD);
        ck_assert_ptr_eq(strstr(why.text, "artifact is damaged: "), why.text);
        munmap(copy.pages, copy.page_bytes);
    }
    free(blob.data);
}
END_TEST

static Elf64_Shdr *section_of(const struct cpu_object *blob, unsigned type)
{
    Elf64_Ehdr *header = (Elf64_Ehdr *)blob->data;
    Elf64_Shdr *sections = (Elf64_Shdr *)(blob->data + header->e_shoff);

    for (unsigned i = 1; i < header->e_shnum; i++)
        if (sections[i].sh_type == type && (type != SHT_PROGBITS || sections[i].sh_size))
            return &sections[i];
    ck_abort_msg("no section of type %u", type);
}

/* The last global symbol that is defined: their records come last. */
static Elf64_Sym *definition_of(const struct cpu_object *blob)
{
    const Elf64_Shdr *table = section_of(blob, SHT_SYMTAB);
    Elf64_Sym *symbol = (Elf64_Sym *)(blob->data + table->sh_offset + table->sh_size);

    while (!(--symbol)->st_shndx)
        ;
    return symbol;
}

static Elf64_Rela *relocation_of(const struct cpu_object *blob)
{
    return (Elf64_Rela *)(blob->data + section_of(blob, SHT_RELA)->sh_offset);
}

/* Tell lie number `which` about the object's structure. What must be said of it; NULL past the
 * last. */
static const char *lie(const struct cpu_object *blob, int which)
{
    Elf64_Ehdr *header = (Elf64_Ehdr *)blob->data;
    Elf64_Shdr *code = section_of(blob, SHT_PROGBITS), *zeros = section_of(blob, SHT_NOBITS);
    Elf64_Shdr *symbols = section_of(blob, SHT_SYMTAB), *relocations = section_of(blob, SHT_RELA);
    Elf64_Shdr *strings = section_of(blob, SHT_STRTAB);

#define LIE(statement, reason)                                                                     \
    if (!which--) {                                                                                \
        statement;                                                                                 \
        return reason;                                                                             \
    }
    LIE(header->e_type = ET_DYN, "is not a relocatable")
    LIE(header->e_shoff = UINT64_MAX - 63, "section table is outside")
    LIE(header->e_shnum = 0, "section table is outside")
    LIE(header->e_shnum = 0xfe00, "section table is outside")
    LIE(header->e_shstrndx = header->e_shnum, "no section names")
    LIE(header->e_flags = 1, "header is not a compiler's")
    LIE(blob->data[strings->sh_offset + strings->sh_size - 1] = 'x', "does not end")
    LIE(blob->data[strings->sh_offset + 1] = '\n', "no readable name")
    LIE(strings->sh_size = 0, "does not end")
    LIE(strings->sh_offset = UINT64_MAX, "does not end")
    LIE(code->sh_flags |= SHF_WRITE, "both writable and executable")
    LIE(code->sh_flags |= SHF_COMPRESSED, "flags 0x")
    LIE(code->sh_flags |= SHF_TLS, "no thread-local data")
    LIE(code->sh_type = SHT_INIT_ARRAY, "no constructors")
    LIE(code->sh_type = SHT_DYNAMIC, "type 0x6")
    LIE(code->sh_addralign = 24, "alignment=24")
    LIE(code->sh_addralign = 8192, "alignment=8192")
    LIE(code->sh_addr = 4096, "has an address")
    LIE(code->sh_size = UINT64_MAX, "outside the file")
    LIE(code->sh_name = UINT32_MAX, "no readable name")
    LIE(zeros->sh_size = UINT64_C(1) << 40, "over 256 MiB")
    LIE(zeros->sh_type = SHT_SYMTAB, "a table may not be loaded")
    LIE(symbols->sh_entsize = 8, "broken records")
    LIE(symbols->sh_type = SHT_NOTE, "no symbols")
    LIE(symbols->sh_link = header->e_shnum, "no symbols")
    LIE(symbols->sh_info++, "out of order")
    LIE(definition_of(blob)->st_size = UINT64_MAX, "outside its section")
    LIE(definition_of(blob)->st_value = 1 << 20, "outside its section")
    LIE(definition_of(blob)->st_shndx = SHN_COMMON, "is in no section")
    LIE(definition_of(blob)->st_shndx = header->e_shnum, "is in no section")
    LIE(definition_of(blob)->st_shndx = SHN_UNDEF, "imports symbol=")
    LIE(definition_of(blob)->st_info = ELF64_ST_INFO(STB_GLOBAL, STT_TLS), "thread-local")
    LIE(definition_of(blob)->st_info = ELF64_ST_INFO(STB_GLOBAL, STT_GNU_IFUNC), "type 10")
    LIE(definition_of(blob)->st_name = UINT32_MAX, "no readable name")
    LIE(relocations->sh_link = 0, "of no section")
    LIE(relocations->sh_info = header->e_shnum, "of no section")
    LIE(relocations->sh_info = 0, "not loaded")
    LIE(relocations->sh_size -= 8, "broken records")
    LIE(relocation_of(blob)->r_offset = code->sh_size - 1, "outside its section")
    LIE(relocation_of(blob)->r_offset = UINT64_MAX, "outside its section")
    LIE(relocation_of(blob)->r_info |= UINT64_C(0xffffff) << 32, "against no symbol")
    LIE(relocation_of(blob)->r_info |= 0xfff, "this kind is not allowed")
#undef LIE
    return NULL;
}

START_TEST(every_lie_about_the_structure_is_refused_in_its_own_words)
{
    struct quern_target target = { .cpu_level = 3 };
    struct cpu_object blob = cpu_object_make(&target, cpu_object_varied_source);
    int count = 0;

    for (const char *reason = "";; count++) {
        struct quern_message why = { "" };
        const char *function = NULL;
        struct cpu_object copy = { aligned_alloc(64, (blob.bytes + 63) / 64 * 64), blob.bytes };
        memcpy(copy.data, blob.data, blob.bytes);
        if (!(reason = lie(&copy, count))) {
            free(copy.data);
            break;
        }
        ck_assert_msg(qn_elf_check(copy.data, copy.bytes, &target, &function, &why) == QUERN_LOAD,
                      "lie %d, %s", count, reason);
        ck_assert_msg(strstr(why.text, reason) != NULL, "lie %d, %s: %s", count, reason, why.text);
        ck_assert_ptr_null(function);
        free(copy.data);
    }
    ck_assert_int_gt(count, 40);
    free(blob.data);
}
END_TEST

START_TEST(garbage_is_refused)
{
    struct quern_target target = { .cpu_level = 4 };
    struct quern_message why;
    const char *function = NULL;
    unsigned char garbage[4096];

    for (int i = 0; i < 200; i++) {
        unsigned state = cpu_object_dice();
        for (size_t k = 0; k < sizeof garbage; k++)
            garbage[k] = (unsigned char)rand_r(&state);
        if (i % 2)
            memcpy(garbage, "\177ELF\2\1\1", 7);
        ck_assert_int_eq(qn_elf_check(garbage, state % sizeof garbage, &target, &function, &why),
                         QUERN_LOAD);
        ck_assert_ptr_eq(strstr(why.text, "artifact "), why.text);
        ck_assert_ptr_null(function);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("elf_check");
    TCase *cases = tcase_create("object");

    tcase_set_timeout(cases, 60);
    tcase_add_test(cases, every_target_compiles_here_and_passes_the_check);
    tcase_add_test(cases, damaged_objects_are_checked_without_a_read_out_of_bounds);
    tcase_add_test(cases, every_lie_about_the_structure_is_refused_in_its_own_words);
    tcase_add_test(cases, garbage_is_refused);
    suite_add_tcase(suite, cases);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
