/* Is a blob a cubin whose parts lie within it?
 *
 * The driver is given an address and no length: it believes what the ELF header says of sections
 * and segments, and a truncated file would make it read beyond the end. So the extents are checked
 * first. What is in the sections is the driver's business; that the bytes are those which were
 * stored, the store's. */
#include <elf.h>
#include <string.h>

#include "jit/cuda/cuda_device.h"

enum { MACHINE_CUDA = 190 };

/* count entries of `size` bytes at offset, without overflow. */
static bool is_within(size_t blob_bytes, uint64_t offset, uint64_t count, uint64_t size)
{
    return offset <= blob_bytes && (!size || count <= (blob_bytes - offset) / size);
}

static bool has_sections_within(const unsigned char *blob, size_t blob_bytes,
                                const Elf64_Ehdr *header)
{
    Elf64_Shdr section;

    if (!header->e_shnum || header->e_shentsize != sizeof section ||
        !is_within(blob_bytes, header->e_shoff, header->e_shnum, sizeof section))
        return false;
    for (unsigned i = 0; i < header->e_shnum; i++) {
        memcpy(&section, blob + header->e_shoff + i * sizeof section, sizeof section);
        if (section.sh_type != SHT_NOBITS &&
            !is_within(blob_bytes, section.sh_offset, 1, section.sh_size))
            return false;
    }
    return true;
}

static bool has_segments_within(const unsigned char *blob, size_t blob_bytes,
                                const Elf64_Ehdr *header)
{
    Elf64_Phdr segment;

    if (!header->e_phnum)
        return true;
    if (header->e_phentsize != sizeof segment ||
        !is_within(blob_bytes, header->e_phoff, header->e_phnum, sizeof segment))
        return false;
    for (unsigned i = 0; i < header->e_phnum; i++) {
        memcpy(&segment, blob + header->e_phoff + i * sizeof segment, sizeof segment);
        if (!is_within(blob_bytes, segment.p_offset, 1, segment.p_filesz))
            return false;
    }
    return true;
}

int qn_cuda_image_check(const void *blob, size_t blob_bytes, struct quern_message *why)
{
    Elf64_Ehdr header;

    if (blob_bytes < sizeof header)
        return QN_CUDA_FAIL(LOAD, why, "artifact: %zu bytes are no cubin", blob_bytes);
    memcpy(&header, blob, sizeof header);
    if (memcmp(header.e_ident, ELFMAG, SELFMAG) || header.e_ident[EI_CLASS] != ELFCLASS64 ||
        header.e_machine != MACHINE_CUDA)
        return QN_CUDA_FAIL(LOAD, why, "artifact: is no cubin (a 64-bit ELF file for CUDA)");
    if (!has_sections_within(blob, blob_bytes, &header) ||
        !has_segments_within(blob, blob_bytes, &header))
        return QN_CUDA_FAIL(LOAD, why, "artifact: the cubin is cut off or damaged");
    return 0;
}
