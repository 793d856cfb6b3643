/* What an object may contain before LLVM sees it.
 *
 * An artifact comes from a file that may be damaged or made by someone else. LLVM's linker trusts
 * much of what it reads: a relocation past its section is written where it says. So everything that
 * it will follow is bounded here, and only what our compile options can produce is let through:
 *
 *     header -----> section table --+-- code, data, zeros     in the file; powers of two; W or X
 *                                   +-- one symbol table      names end; values within sections
 *                                   +-- relocations           known kinds; within their section
 *                                   `-- comments, notes       within the file
 *
 * 1. The header: ELF64, little-endian, relocatable, of the target's machine.
 * 2. Every section: a known type, harmless flags, within the file. Constructors, thread-local data,
 *    unwind tables (LLVM would register them) and compressed sections are refused.
 * 3. Every symbol: defined inside a section, or undefined and one of memcpy and memset.
 * 4. Every relocation: a kind whose width is known, inside a section that is loaded.
 *
 * Invariant: no byte outside [blob, blob + bytes) is read, whatever the blob holds; records are
 * copied out, so that the blob needs no alignment.
 *
 * It does not look at the code: that the bytes are those that the compiler made is what the store's
 * hash says. */
#include <elf.h>
#include <string.h>

#include "jit/cpu/cpu.h"

enum {
    MAX_ALIGNMENT = 4096,
    MAX_SECTION_BYTES = 256 << 20, /* zeros take no room in the file: this bounds them */
    SHT_ADDRSIG = 0x6fff4c03       /* clang's note for linkers that merge functions */
};

struct object {
    const unsigned char *data;
    size_t bytes;
    Elf64_Ehdr header;
    Elf64_Shdr symbols, strings;
    unsigned symbol_section; /* index; 0: none seen */
    unsigned symbol_count;
    struct quern_message *why;
};

/* Relocations that position-independent C gives, how many bytes each writes and how many before it
 * the linker may rewrite (a load from the GOT becomes a lea). */
struct relocation {
    uint16_t machine, type;
    uint8_t width, before;
};
static const struct relocation relocations[] = {
    { EM_X86_64, R_X86_64_64, 8, 0 },
    { EM_X86_64, R_X86_64_PC64, 8, 0 },
    { EM_X86_64, R_X86_64_PC32, 4, 0 },
    { EM_X86_64, R_X86_64_PLT32, 4, 1 },
    { EM_X86_64, R_X86_64_GOTPCREL, 4, 3 },
    { EM_X86_64, R_X86_64_GOTPCRELX, 4, 2 },
    { EM_X86_64, R_X86_64_REX_GOTPCRELX, 4, 3 },
    { EM_AARCH64, R_AARCH64_ABS64, 8, 0 },
    { EM_AARCH64, R_AARCH64_PREL64, 8, 0 },
    { EM_AARCH64, R_AARCH64_PREL32, 4, 0 },
    { EM_AARCH64, R_AARCH64_ADR_PREL_LO21, 4, 0 },
    { EM_AARCH64, R_AARCH64_ADR_PREL_PG_HI21, 4, 0 },
    { EM_AARCH64, R_AARCH64_ADD_ABS_LO12_NC, 4, 0 },
    { EM_AARCH64, R_AARCH64_LDST8_ABS_LO12_NC, 4, 0 },
    { EM_AARCH64, R_AARCH64_LDST16_ABS_LO12_NC, 4, 0 },
    { EM_AARCH64, R_AARCH64_LDST32_ABS_LO12_NC, 4, 0 },
    { EM_AARCH64, R_AARCH64_LDST64_ABS_LO12_NC, 4, 0 },
    { EM_AARCH64, R_AARCH64_LDST128_ABS_LO12_NC, 4, 0 },
    { EM_AARCH64, R_AARCH64_CALL26, 4, 0 },
    { EM_AARCH64, R_AARCH64_JUMP26, 4, 0 },
    { EM_AARCH64, R_AARCH64_CONDBR19, 4, 0 },
    { EM_AARCH64, R_AARCH64_TSTBR14, 4, 0 },
    { EM_AARCH64, R_AARCH64_ADR_GOT_PAGE, 4, 0 },
    { EM_AARCH64, R_AARCH64_LD64_GOT_LO12_NC, 4, 0 },
};

#define DAMAGED(object, ...) QN_CPU_FAIL(LOAD, (object)->why, "artifact is damaged: " __VA_ARGS__)
#define REFUSED(object, ...) QN_CPU_FAIL(LOAD, (object)->why, "artifact " __VA_ARGS__)

static int is_within(uint64_t offset, uint64_t size, uint64_t bytes)
{
    return offset <= bytes && size <= bytes - offset;
}

/* Section header `index`, which is below e_shnum. */
static Elf64_Shdr section_at(const struct object *object, unsigned index)
{
    Elf64_Shdr section;
    memcpy(&section, object->data + object->header.e_shoff + index * sizeof section,
           sizeof section);
    return section;
}

/* Text of a string table that passed check_strings(). NULL past its end, and for what is not
 * printable: names go into messages. */
static const char *string_at(const struct object *object, const Elf64_Shdr *table, uint32_t offset)
{
    if (offset >= table->sh_size)
        return NULL;
    const char *text = (const char *)object->data + table->sh_offset + offset;
    for (const char *at = text; *at; at++)
        if (*at < ' ' || *at > '~')
            return NULL;
    return text;
}

/* ---- 1. The header ------------------------------------------------------------------------- */

static int check_header(struct object *object, const struct quern_target *target)
{
    const Elf64_Ehdr *header = &object->header;
    unsigned machine = target->cpu_arch == 1 ? EM_AARCH64 : EM_X86_64;

    if (object->bytes < sizeof *header)
        return DAMAGED(object, "bytes=%zu: shorter than an ELF header", object->bytes);
    memcpy(&object->header, object->data, sizeof *header);
    if (memcmp(header->e_ident, ELFMAG, SELFMAG))
        return DAMAGED(object, "not an ELF object");
    if (header->e_ident[EI_CLASS] != ELFCLASS64 || header->e_ident[EI_DATA] != ELFDATA2LSB ||
        header->e_ident[EI_VERSION] != EV_CURRENT || header->e_type != ET_REL)
        return REFUSED(object, "is not a relocatable 64-bit little-endian object");
    if (header->e_machine != machine)
        return REFUSED(object, "machine=%u: must be %u, as the target's is", header->e_machine,
                       machine);
    if (header->e_ehsize != sizeof *header || header->e_shentsize != sizeof(Elf64_Shdr) ||
        header->e_phnum || header->e_flags || header->e_version != EV_CURRENT)
        return DAMAGED(object, "its header is not a compiler's");
    if (!header->e_shnum || header->e_shnum >= SHN_LORESERVE || header->e_shoff % 8 ||
        !is_within(header->e_shoff, (uint64_t)header->e_shnum * sizeof(Elf64_Shdr), object->bytes))
        return DAMAGED(object, "its section table is outside it");
    if (!header->e_shstrndx || header->e_shstrndx >= header->e_shnum)
        return DAMAGED(object, "it has no section names");
    return 0;
}

/* ---- 2. The sections ----------------------------------------------------------------------- */

static int check_strings(struct object *object, const Elf64_Shdr *table)
{
    if (table->sh_type != SHT_STRTAB || !table->sh_size ||
        !is_within(table->sh_offset, table->sh_size, object->bytes) ||
        object->data[table->sh_offset + table->sh_size - 1])
        return DAMAGED(object, "a string table does not end");
    return 0;
}

/* By name, for what has no type of its own everywhere. */
static int check_name(struct object *object, const char *name)
{
    static const char *const refused[] = { ".ctors",      ".dtors",   ".init",
                                           ".fini",       ".preinit", ".eh_frame",
                                           ".gcc_except", ".tdata",   ".tbss" };

    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++)
        if (!strncmp(name, refused[i], strlen(refused[i])))
            return REFUSED(object,
                           "section=%.40s: kernels may have no constructors, unwind tables or "
                           "thread-local data",
                           name);
    return 0;
}

static int check_flags(struct object *object, const Elf64_Shdr *section, const char *name)
{
    const uint64_t known = SHF_WRITE | SHF_ALLOC | SHF_EXECINSTR | SHF_MERGE | SHF_STRINGS |
                           SHF_INFO_LINK | SHF_EXCLUDE;

    if (section->sh_flags & SHF_TLS)
        return REFUSED(object, "section=%.40s: kernels may have no thread-local data", name);
    if (section->sh_flags & ~known)
        return REFUSED(object, "section=%.40s: flags 0x%llx are not allowed", name,
                       (unsigned long long)section->sh_flags);
    if (section->sh_flags & SHF_WRITE && section->sh_flags & SHF_EXECINSTR)
        return REFUSED(object, "section=%.40s: is both writable and executable", name);
    if (section->sh_flags & SHF_ALLOC && section->sh_type != SHT_PROGBITS &&
        section->sh_type != SHT_NOBITS && section->sh_type != SHT_NOTE)
        return DAMAGED(object, "section=%.40s: a table may not be loaded", name);
    return 0;
}

static int check_extent(struct object *object, const Elf64_Shdr *section, const char *name)
{
    uint64_t alignment = section->sh_addralign;

    if (section->sh_type == SHT_NULL)
        return 0;
    if (section->sh_type != SHT_NOBITS &&
        !is_within(section->sh_offset, section->sh_size, object->bytes))
        return DAMAGED(object, "section=%.40s: outside the file", name);
    if (section->sh_addr || section->sh_size > MAX_SECTION_BYTES)
        return DAMAGED(object, "section=%.40s: has an address or is over 256 MiB", name);
    if (alignment & (alignment - 1) || alignment > MAX_ALIGNMENT)
        return DAMAGED(object, "section=%.40s: alignment=%llu must be a power of two to 4096", name,
                       (unsigned long long)alignment);
    return 0;
}

static int check_type(struct object *object, const Elf64_Shdr *section, const char *name)
{
    switch (section->sh_type) {
    case SHT_NULL:
    case SHT_PROGBITS:
    case SHT_NOBITS:
    case SHT_SYMTAB:
    case SHT_STRTAB:
    case SHT_RELA:
    case SHT_NOTE:
    case SHT_ADDRSIG:
        return 0;
    case SHT_INIT_ARRAY:
    case SHT_FINI_ARRAY:
    case SHT_PREINIT_ARRAY:
        return REFUSED(object, "section=%.40s: kernels may have no constructors", name);
    default:
        return REFUSED(object, "section=%.40s: type 0x%x is not allowed", name, section->sh_type);
    }
}

/* Records of 24 bytes, symbols or relocations: whole and where they may be read in place. */
static int check_records(struct object *object, const Elf64_Shdr *section)
{
    _Static_assert(sizeof(Elf64_Sym) == 24 && sizeof(Elf64_Rela) == 24, "ELF64");
    if (section->sh_entsize != 24 || section->sh_size % 24 || section->sh_offset % 8)
        return DAMAGED(object, "a table has broken records");
    return 0;
}

static int check_section(struct object *object, unsigned index, const Elf64_Shdr *names)
{
    Elf64_Shdr section = section_at(object, index);
    const char *name = string_at(object, names, section.sh_name);
    int status;

    if (!name)
        return DAMAGED(object, "a section has no readable name");
    if ((status = check_type(object, &section, name)) ||
        (status = check_flags(object, &section, name)) ||
        (status = check_extent(object, &section, name)) || (status = check_name(object, name)))
        return status;
    if (section.sh_type == SHT_STRTAB)
        return check_strings(object, &section);
    if (section.sh_type != SHT_SYMTAB)
        return section.sh_type == SHT_RELA ? check_records(object, &section) : 0;
    if (object->symbol_section)
        return DAMAGED(object, "it has two symbol tables");
    object->symbol_section = index;
    object->symbols = section;
    return check_records(object, &section);
}

static int check_sections(struct object *object)
{
    Elf64_Shdr names = section_at(object, object->header.e_shstrndx);
    int status = check_strings(object, &names);

    for (unsigned i = 0; i < object->header.e_shnum && !status; i++)
        status = check_section(object, i, &names);
    if (status)
        return status;
    if (section_at(object, 0).sh_type != SHT_NULL)
        return DAMAGED(object, "its first section is not empty");
    if (!object->symbol_section || object->symbols.sh_link >= object->header.e_shnum)
        return DAMAGED(object, "it has no symbols");
    object->strings = section_at(object, object->symbols.sh_link);
    return check_strings(object, &object->strings);
}

/* ---- 3. The symbols ------------------------------------------------------------------------ */

static Elf64_Sym symbol_at(const struct object *object, unsigned index)
{
    Elf64_Sym symbol;
    memcpy(&symbol, object->data + object->symbols.sh_offset + index * sizeof symbol,
           sizeof symbol);
    return symbol;
}

static int check_undefined(struct object *object, const char *name)
{
    if (!strcmp(name, "memcpy") || !strcmp(name, "memset"))
        return 0;
    return REFUSED(object, "imports symbol=%.80s: only memcpy and memset are provided", name);
}

static int check_definition(struct object *object, const Elf64_Sym *symbol, const char *name)
{
    if (symbol->st_shndx == SHN_ABS && ELF64_ST_TYPE(symbol->st_info) == STT_FILE &&
        ELF64_ST_BIND(symbol->st_info) == STB_LOCAL)
        return 0;
    if (symbol->st_shndx >= object->header.e_shnum)
        return REFUSED(object, "symbol=%.80s: is in no section", name);
    Elf64_Shdr section = section_at(object, symbol->st_shndx);
    if (!is_within(symbol->st_value, symbol->st_size, section.sh_size))
        return DAMAGED(object, "symbol=%.80s: outside its section", name);
    if (ELF64_ST_BIND(symbol->st_info) != STB_LOCAL && !(section.sh_flags & SHF_ALLOC))
        return DAMAGED(object, "symbol=%.80s: in a section that is not loaded", name);
    return 0;
}

static int check_symbol(struct object *object, unsigned index)
{
    Elf64_Sym symbol = symbol_at(object, index);
    const char *name = string_at(object, &object->strings, symbol.st_name);
    unsigned type = ELF64_ST_TYPE(symbol.st_info), bind = ELF64_ST_BIND(symbol.st_info);

    if (!name)
        return DAMAGED(object, "symbol %u has no readable name", index);
    if (type == STT_TLS)
        return REFUSED(object, "symbol=%.80s: kernels may have no thread-local data", name);
    if (type > STT_FILE || bind > STB_WEAK || symbol.st_other > STV_PROTECTED)
        return REFUSED(object, "symbol=%.80s: type %u, binding %u is not allowed", name, type,
                       bind);
    if ((bind == STB_LOCAL) != (index < object->symbols.sh_info) || (bind && !*name))
        return DAMAGED(object, "its symbols are out of order");
    if (!index)
        return symbol.st_shndx || symbol.st_value || symbol.st_size || *name
                   ? DAMAGED(object, "its first symbol is not empty")
                   : 0;
    return symbol.st_shndx ? check_definition(object, &symbol, name)
                           : check_undefined(object, name);
}

/* A global function in code: what the linker is asked for first. */
static int is_function(const struct object *object, const Elf64_Sym *symbol)
{
    return ELF64_ST_BIND(symbol->st_info) == STB_GLOBAL &&
           ELF64_ST_TYPE(symbol->st_info) == STT_FUNC && symbol->st_shndx &&
           section_at(object, symbol->st_shndx).sh_flags & SHF_EXECINSTR;
}

static int check_symbols(struct object *object, const char **function)
{
    const char *found = NULL;
    int status = 0;

    object->symbol_count = (unsigned)(object->symbols.sh_size / sizeof(Elf64_Sym));
    for (unsigned i = 0; i < object->symbol_count && !status; i++) {
        status = check_symbol(object, i);
        Elf64_Sym symbol = symbol_at(object, i);
        if (!status && !found && is_function(object, &symbol))
            found = string_at(object, &object->strings, symbol.st_name);
    }
    if (status)
        return status;
    if (!found)
        return REFUSED(object, "defines no function");
    *function = found;
    return 0;
}

/* ---- 4. The relocations -------------------------------------------------------------------- */

static const struct relocation *relocation_find(unsigned machine, unsigned type)
{
    for (size_t i = 0; i < sizeof relocations / sizeof relocations[0]; i++)
        if (relocations[i].machine == machine && relocations[i].type == type)
            return &relocations[i];
    return NULL;
}

static int check_relocation(struct object *object, const Elf64_Rela *entry,
                            const Elf64_Shdr *patched)
{
    unsigned type = ELF64_R_TYPE(entry->r_info);
    const struct relocation *known = relocation_find(object->header.e_machine, type);

    if (!known)
        return REFUSED(object, "relocation=%u: this kind is not allowed", type);
    if (ELF64_R_SYM(entry->r_info) >= object->symbol_count)
        return DAMAGED(object, "a relocation is against no symbol");
    if (entry->r_offset < known->before ||
        !is_within(entry->r_offset, known->width, patched->sh_size))
        return DAMAGED(object, "a relocation is outside its section");
    return 0;
}

static int check_relocations(struct object *object, const Elf64_Shdr *table)
{
    int status = 0;

    if (table->sh_link != object->symbol_section || table->sh_info >= object->header.e_shnum)
        return DAMAGED(object, "relocations of no section");
    Elf64_Shdr patched = section_at(object, table->sh_info);
    if (patched.sh_type != SHT_PROGBITS || !(patched.sh_flags & SHF_ALLOC))
        return DAMAGED(object, "relocations of a section that is not loaded");
    for (uint64_t at = 0; at < table->sh_size && !status; at += sizeof(Elf64_Rela)) {
        Elf64_Rela entry;
        memcpy(&entry, object->data + table->sh_offset + at, sizeof entry);
        status = check_relocation(object, &entry, &patched);
    }
    return status;
}

int qn_elf_check(const void *blob, size_t blob_bytes, const struct quern_target *target,
                 const char **function, struct quern_message *why)
{
    struct object object = { .data = blob, .bytes = blob_bytes, .why = why };
    const char *found = NULL;
    int status = check_header(&object, target);

    if (!status)
        status = check_sections(&object);
    if (!status)
        status = check_symbols(&object, &found);
    for (unsigned i = 0; i < object.header.e_shnum && !status; i++) {
        Elf64_Shdr section = section_at(&object, i);
        if (section.sh_type == SHT_RELA)
            status = check_relocations(&object, &section);
    }
    if (!status)
        *function = found;
    return status;
}
