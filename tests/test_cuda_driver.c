/* The CUDA backend's host half with no GPU: what it says where there is no driver, and what it asks
 * of the stand-in of cuda_fake.h. */
#include <dlfcn.h>
#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/cuda_fake.h"

static const struct qn_backend *const cuda = &qn_backend_cuda;

/* ---- No driver ----------------------------------------------------------------------------- */

START_TEST(without_a_driver_open_says_so_in_one_line)
{
    struct qn_backend_options options = { .ordinal = 0 };
    struct qn_device *opened;
    void *library = dlopen("libcuda.so.1", RTLD_NOW);

    if (library)
        return;
    cuda_bed_says(cuda->open(&options, &opened, &cuda_bed.why), QUERN_DEVICE,
                  "device=cuda: no NVIDIA driver (libcuda.so.1)");
}
END_TEST

/* What `quern run` says on its standard error with `source` for a driver. */
static char *said_with_driver(const char *source)
{
    char *file = common_scratch_path("driver/driver.c"), *command, *said;
    int code;

    common_file_write(file, source);
    ck_assert_int_gt(asprintf(&command,
                              "cd %s/driver && %s -shared -fPIC -o libcuda.so.1 driver.c && "
                              "QUERN_CACHE= LD_LIBRARY_PATH=. %s/../quern run copy n=100 "
                              "2>&1 >/dev/null",
                              common_scratch(), common_clang(), common_directory()),
                     0);
    said = common_shell(command, &code);
    ck_assert_msg(code == 0, "exit %d: %s", code, said);
    free(command);
    free(file);
    return said;
}

START_TEST(a_driver_that_does_not_serve_is_said_before_the_cpu_does)
{
    char *said = said_with_driver("int cuInit(unsigned flags) { return (int)flags; }");

    ck_assert_msg(strstr(said, "device=cuda: the NVIDIA driver (CUDA 0.0) lacks "), "%s", said);
    ck_assert_msg(strstr(said, "; trying device=cpu\n"), "%s", said);
    free(said);
}
END_TEST

START_TEST(opened_to_compile_only_nothing_else_is_done)
{
    struct qn_backend_options options = { .ordinal = -1 };
    struct quern_target target = { .kind = QUERN_CUDA, .sm = 80 };
    struct qn_device *opened;
    struct qn_module *module;
    char text[512] = "";

    ck_assert_int_eq(cuda->open(&options, &opened, &cuda_bed.why), 0);
    cuda->options(&target, text, sizeof text);
    ck_assert_ptr_nonnull(strstr(text, "sm_80"));
    cuda_bed_says(cuda->accepts(opened, &target, &cuda_bed.why), QUERN_INVALID, "target=sm_80: ");
    cuda_bed_says(cuda->load(opened, &target, "", 0, &module, &cuda_bed.why), QUERN_LOAD,
                  "compile only");
    cuda_bed_says(cuda->launch(opened, &cuda_bed.plan, cuda_bed.functions, &cuda_bed.launch, NULL,
                               QN_GRID_PARALLEL, &cuda_bed.why),
                  QUERN_DEVICE, "device=cuda: was opened to compile only");
    ck_assert_ptr_null(cuda->alloc(opened, 16, NULL));
    ck_assert_int_eq(cuda->copy(opened, text, text, 1, NULL), QUERN_DEVICE);
    ck_assert_int_eq((int)cuda->free_bytes(opened), 0);
    cuda->close(opened);
}
END_TEST

static void count_fact(void *user, const char *section, const char *name, const char *value)
{
    int *found = user;

    ck_assert_str_eq(section, "cuda");
    ck_assert(value[0] && !strchr(value, '\n'));
    *found |=
        !strcmp(name, "usable") << 0 | !strcmp(name, "driver") << 1 | !strcmp(name, "nvrtc") << 2;
}

START_TEST(doctor_tells_of_driver_and_compiler_whatever_is_here)
{
    struct qn_backend_options options = { .ordinal = 0 };
    int found = 0;

    cuda->doctor(&options, NULL, count_fact, &found);
    ck_assert_int_eq(found, 7);
}
END_TEST

/* ---- Artifacts ----------------------------------------------------------------------------- */

START_TEST(an_artifact_runs_on_its_architecture_or_plain_on_a_newer_of_its_major)
{
    static const struct {
        int own, wanted;
        char suffix;
        bool is_accepted;
    } rows[] = {
        { 90, 90, 'a', true },    { 90, 90, 0, true },    { 90, 80, 0, false },
        { 90, 100, 'a', false },  { 89, 80, 0, true },    { 89, 86, 0, true },
        { 86, 89, 0, false },     { 89, 89, 'a', false }, { 121, 120, 0, true },
        { 121, 120, 'a', false }, { 100, 90, 0, false },  { 120, 121, 0, false },
    };

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct quern_target target = { .kind = QUERN_CUDA, .sm = rows[i].wanted };
        target.sm_suffix = rows[i].suffix;
        cuda_bed.device.target.sm = rows[i].own;
        cuda_bed.device.target.sm_suffix = rows[i].own >= 90 ? 'a' : 0;
        ck_assert_msg(!cuda->accepts(&cuda_bed.device, &target, &cuda_bed.why) ==
                          rows[i].is_accepted,
                      "row %zu", i);
    }
    cuda_bed.device.target =
        (struct quern_target){ .kind = QUERN_CUDA, .sm = 90, .sm_suffix = 'a' };
    struct quern_target other = { .kind = QUERN_CUDA, .sm = 100, .sm_suffix = 'a' };
    cuda_bed_says(cuda->accepts(&cuda_bed.device, &other, &cuda_bed.why), QUERN_INVALID,
                  "target=sm_100a: this device is sm_90a");
}
END_TEST

START_TEST(a_blob_that_ends_early_or_is_no_cubin_never_reaches_the_driver)
{
    struct {
        Elf64_Ehdr header;
        Elf64_Shdr section[2];
        char bytes[100];
    } image = { .header = { .e_ident = { 0x7f, 'E', 'L', 'F', ELFCLASS64 }, .e_machine = 190 } };
    Elf64_Ehdr *header = &image.header;

    header->e_shoff = sizeof image.header;
    header->e_shnum = 2;
    header->e_shentsize = sizeof image.section[0];
    image.section[0] = (Elf64_Shdr){ .sh_type = SHT_NOBITS, .sh_size = 1 << 20 };
    image.section[1] = (Elf64_Shdr){ .sh_type = SHT_PROGBITS, .sh_size = sizeof image.bytes };
    image.section[1].sh_offset = offsetof(__typeof__(image), bytes);
    size_t whole = offsetof(__typeof__(image), bytes) + sizeof image.bytes;
    ck_assert_int_eq(qn_cuda_image_check(&image, whole, &cuda_bed.why), 0);
    for (size_t bytes = 0; bytes < whole; bytes++)
        ck_assert_int_eq(qn_cuda_image_check(&image, bytes, &cuda_bed.why), QUERN_LOAD);
    image.section[1].sh_size = UINT64_MAX;
    cuda_bed_says(qn_cuda_image_check(&image, whole, &cuda_bed.why), QUERN_LOAD,
                  "cut off or damaged");
    image.section[1].sh_size = 1;
    header->e_phnum = 1;
    header->e_phentsize = sizeof(Elf64_Phdr);
    header->e_phoff = UINT64_MAX - 8;
    cuda_bed_says(qn_cuda_image_check(&image, whole, &cuda_bed.why), QUERN_LOAD,
                  "cut off or damaged");
    header->e_machine = EM_X86_64;
    cuda_bed_says(qn_cuda_image_check(&image, whole, &cuda_bed.why), QUERN_LOAD, "is no cubin");
}
END_TEST

/* The smallest that the driver is given. */
static const Elf64_Ehdr least_header = {
    .e_ident = { 0x7f, 'E', 'L', 'F', ELFCLASS64 },
    .e_machine = 190,
    .e_shnum = 1,
    .e_shentsize = sizeof(Elf64_Shdr),
};

static int load(struct qn_module **module)
{
    const struct quern_target target = { .kind = QUERN_CUDA, .sm = 90, .sm_suffix = 'a' };

    cuda_fake.asked[0] = '\0';
    return cuda->load(&cuda_bed.device, &target, &least_header, sizeof least_header, module,
                      &cuda_bed.why);
}

START_TEST(a_module_is_loaded_unloaded_and_refused_in_the_drivers_words)
{
    struct qn_module *module = NULL;

    ck_assert_int_eq(load(&module), 0);
    ck_assert_str_eq(cuda_fake.asked, "retain push load pop");
    cuda_fake.asked[0] = '\0';
    cuda->unload(&cuda_bed.device, module);
    ck_assert_str_eq(cuda_fake.asked, "push csync unload pop");
    cuda->unload(&cuda_bed.device, NULL);
    cuda_fake.failing = "load";
    cuda_fake.code = CU_UNSUPPORTED_PTX_VERSION;
    cuda_bed_says(load(&module), QUERN_LOAD,
                  "device=cuda:0: artifact for sm_90a: the driver (CUDA 13.0) is older than it");
    cuda_fake.code = CU_INVALID_VALUE;
    cuda_bed_says(load(&module), QUERN_LOAD, "cuLibraryLoadData");
    cuda_fake.code = CU_OUT_OF_MEMORY;
    cuda_bed_says(load(&module), QUERN_NO_MEMORY, "cuLibraryLoadData");
    ck_assert_int_eq(cuda_fake.depth, 0);
}
END_TEST

START_TEST(a_function_may_use_all_shared_memory_and_takes_one_struct)
{
    struct qn_function *function = NULL;
    struct qn_device *device = &cuda_bed.device;
    struct qn_module *module;

    ck_assert_int_eq(load(&module), 0);
    cuda_fake.kernel_attributes[CU_KERNEL_SHARED_BYTES] = 1024;
    cuda_fake.parameters[0] = 192;
    ck_assert_int_eq(cuda->function(device, module, "main", &function, &cuda_bed.why), 0);
    ck_assert_uint_eq(function->args_bytes, 192);
    ck_assert_int_eq(function->shared_limit, 232448 - 1024);
    ck_assert_int_eq(cuda_fake.kernel_attributes[CU_KERNEL_MAX_DYNAMIC_SHARED_BYTES], 231424);
    ck_assert_int_eq(cuda_fake.kernel_attributes[CU_KERNEL_NON_PORTABLE_CLUSTER], 1);
    ck_assert_uint_eq((uintptr_t)function->maps.last[1].encoded % 64, 0);
    cuda_fake.parameters[0] = QUERN_ARGS_BYTES + 8;
    cuda_bed_says(cuda->function(device, module, "main", &function, &cuda_bed.why), QUERN_LOAD,
                  "entry=main: its argument has 1032 bytes: at most 1024");
    cuda_fake.parameters[0] = 8;
    cuda_fake.failing = "cluster";
    cuda_fake.code = CU_INVALID_VALUE;
    ck_assert_int_eq(cuda->function(device, module, "main", &function, &cuda_bed.why), 0);
    cuda_fake.failing = "set";
    cuda_bed_says(cuda->function(device, module, "main", &function, &cuda_bed.why), QUERN_INVALID,
                  "cuKernelSetAttribute");
    cuda_fake.failing = "kernel";
    cuda_fake.code = CU_NOT_FOUND;
    cuda_bed_says(cuda->function(device, module, "main", &function, &cuda_bed.why), QUERN_LOAD,
                  "entry=main: the artifact has no such kernel");
    ck_assert_int_eq(cuda_fake.depth, 0);
    cuda->unload(device, module);
}
END_TEST

/* ---- Profiles ------------------------------------------------------------------------------ */

START_TEST(a_known_device_has_its_shipped_profile_and_another_an_estimated_one)
{
    struct qn_device *device = &cuda_bed.device;
    const struct quern_profile *profile = &device->profile;

    ck_assert_int_eq(qn_cuda_device_read(device, &cuda_bed.why), 0);
    ck_assert_str_eq(profile->name, "h200");
    ck_assert(device->target.sm == 90 && device->target.sm_suffix == 'a' && device->has_pools);
    cuda_fake.name = "NVIDIA H300";
    ck_assert_int_eq(qn_cuda_device_read(device, &cuda_bed.why), 0);
    ck_assert_str_eq(profile->name, "NVIDIA H300, 132 SMs");
    ck_assert(profile->sm == 90 && profile->cores == 132 && profile->l1_bytes == 232448);
    ck_assert(profile->l2_bytes == 60 << 20 && profile->kind == QUERN_CUDA);
    /* Within a quarter of what was measured on the H200, whose numbers the stand-in's are. */
    ck_assert(profile->memory_gbps > 3400 && profile->memory_gbps < 5300);
    ck_assert(profile->tensor_tflops > 600 && profile->tensor_tflops < 1000);
    ck_assert(profile->l2_gbps > 5300 && profile->l2_gbps < 8800);
    ck_assert(profile->f32_tflops > 41 && profile->f32_tflops < 69);
}
END_TEST

/* ---- Contexts ------------------------------------------------------------------------------ */

START_TEST(the_callers_context_is_used_if_it_is_of_the_device_and_left_as_it_was)
{
    cuda_bed_kernel("main");
    cuda_bed_push(&cuda_fake.contexts[2]);
    ck_assert_int_eq(cuda_bed_run(NULL), 0);
    ck_assert_str_eq(cuda_fake.asked, "launch");
    cuda_bed_push(&cuda_fake.contexts[1]); /* of cuda:1 */
    ck_assert_int_eq(cuda_bed_run(NULL), 0);
    ck_assert_str_eq(cuda_fake.asked, "retain push launch pop");
    ck_assert_int_eq(cuda_bed_run(NULL), 0);
    ck_assert_str_eq(cuda_fake.asked, "push launch pop");
    ck_assert_ptr_eq(cuda_fake.stack[cuda_fake.depth - 1], &cuda_fake.contexts[1]);
    cuda_fake.depth = 0;
    ck_assert_int_eq(cuda_bed_run(NULL), 0);
    ck_assert_str_eq(cuda_fake.asked, "push launch pop");
}
END_TEST

START_TEST(a_stream_brings_its_context_and_must_be_of_the_device)
{
    struct cu_stream here = { &cuda_fake.contexts[2], 0 }, there = { &cuda_fake.contexts[1], 0 };

    cuda_bed_kernel("main");
    cuda_bed_push(&cuda_fake.contexts[0]);
    ck_assert_int_eq(cuda_bed_run(&here), 0);
    ck_assert_str_eq(cuda_fake.asked, "push launch pop");
    ck_assert_ptr_eq(cuda_fake.launched.stream, &here);
    cuda_bed_says(cuda_bed_run(&there), QUERN_INVALID,
                  "is a stream of cuda:1: must be one of cuda:0");
    ck_assert_str_eq(cuda_fake.asked, "push pop");
    cuda_fake.failing = "stream_context";
    cuda_fake.code = CU_INVALID_HANDLE;
    cuda_bed_says(cuda_bed_run(&here), QUERN_INVALID, "stream=0x");
    cuda_fake.code = CU_NOT_SUPPORTED;
    ck_assert_int_eq(cuda_bed_run(&here), 0);
    cuda_fake.code = CU_STREAM_CAPTURE_UNSUPPORTED;
    ck_assert_int_eq(cuda_bed_run(&here), 0);
    ck_assert_int_eq(cuda_fake.depth, 1);
}
END_TEST

START_TEST(a_lost_context_is_said_to_be_lost)
{
    cuda_bed_kernel("main");
    cuda_fake.failing = "launch";
    for (cuda_fake.code = CU_HARDWARE_STACK_ERROR; cuda_fake.code <= CU_LAUNCH_FAILED;
         cuda_fake.code++)
        cuda_bed_says(cuda_bed_run(NULL), QUERN_DEVICE, "the CUDA context is lost");
    cuda_fake.code = CU_ILLEGAL_ADDRESS;
    cuda_bed_says(cuda_bed_run(NULL), QUERN_DEVICE,
                  "cuLaunchKernelEx: CUDA_ERROR_ILLEGAL_ADDRESS (700)");
    cuda_fake.failing = "sync0";
    cuda_bed_says(cuda->synchronize(&cuda_bed.device, NULL, &cuda_bed.why), QUERN_DEVICE,
                  "device=cuda:0: cuStreamSynchronize: CUDA_ERROR_ILLEGAL_ADDRESS");
    ck_assert_int_eq(cuda_fake.depth, 0);
}
END_TEST

/* ---- Launches ------------------------------------------------------------------------------ */

START_TEST(steps_run_in_order_and_empty_ones_not_at_all)
{
    cuda_bed_push(&cuda_fake.contexts[0]);
    cuda_bed_kernel("first");
    quern_plan_memset(&cuda_bed.plan, "zero");
    cuda_bed.launch.steps[1].memset_data = &cuda_bed.plan;
    cuda_bed.launch.steps[1].memset_bytes = 8;
    quern_plan_memset(&cuda_bed.plan, "nothing");
    cuda_bed_kernel("skipped");
    cuda_bed.launch.steps[3].grid[2] = 0;
    cuda_bed_kernel("last");
    ck_assert_int_eq(cuda_bed_run(NULL), 0);
    ck_assert_str_eq(cuda_fake.asked, "launch fill launch");
    cuda_bed.launch.steps[1].memset_bytes = -1;
    cuda_bed_says(cuda_bed_run(NULL), QUERN_INVALID, "step=zero: memset of -1 bytes");
}
END_TEST

START_TEST(a_launch_carries_shape_cluster_and_programmatic_start)
{
    struct quern_step *step = cuda_bed_kernel("main");
    struct qn_cuda_driver old = cuda_fake_driver;

    cuda_bed_push(&cuda_fake.contexts[0]);
    step->shared_bytes = 1000;
    ck_assert_int_eq(cuda_bed_run(NULL), 0);
    ck_assert_uint_eq(cuda_fake.launched.attribute_count, 0);
    ck_assert(cuda_fake.launched.grid[0] == 4 && cuda_fake.launched.grid[1] == 2 &&
              cuda_fake.launched.grid[2] == 1);
    ck_assert(cuda_fake.launched.threads[0] == 128 && cuda_fake.launched.shared_bytes == 1000);
    step->is_programmatic = 1;
    step->cluster[0] = 2;
    cuda_bed.device.target.sm = 89;
    ck_assert_int_eq(cuda_bed_run(NULL), 0);
    ck_assert_uint_eq(cuda_fake.launched.attribute_count, 1);
    cuda_bed.device.target.sm = 90;
    ck_assert_int_eq(cuda_bed_run(NULL), 0);
    ck_assert_uint_eq(cuda_fake.launched.attribute_count, 2);
    ck_assert_int_eq(cuda_fake.attributes[0].id, CU_LAUNCH_CLUSTER);
    ck_assert(cuda_fake.attributes[0].value.cluster[0] == 2 &&
              cuda_fake.attributes[0].value.cluster[2] == 1);
    ck_assert_int_eq(cuda_fake.attributes[1].id, CU_LAUNCH_PROGRAMMATIC);
    ck_assert_int_eq(cuda_fake.attributes[1].value.is_programmatic, 1);
    old.version = 12020;
    cuda_bed.device.cu = &old;
    ck_assert_int_eq(cuda_bed_run(NULL), 0);
    ck_assert_uint_eq(cuda_fake.launched.attribute_count, 1);
}
END_TEST

START_TEST(a_refused_launch_names_the_limit_that_it_is_over)
{
    struct quern_step *step = cuda_bed_kernel("main");
    struct quern_step_launch *at = &cuda_bed.launch.steps[0];

    cuda_fake.failing = "launch";
    cuda_fake.code = CU_INVALID_VALUE;
    at->grid[1] = 65536;
    cuda_bed_says(cuda_bed_run(NULL), QUERN_INVALID,
                  "step=main grid=4x65536x1 threads=128x1x1 shared=0");
    cuda_bed_says(cuda_bed_run(NULL), QUERN_INVALID,
                  "y and z may be at most 65535: cuLaunchKernelEx");
    at->grid[1] = 1;
    step->threads[1] = 9;
    cuda_bed_says(cuda_bed_run(NULL), QUERN_INVALID, "1 to 1024 threads");
    step->threads[1] = 1;
    step->shared_bytes = 232449;
    cuda_bed_says(cuda_bed_run(NULL), QUERN_INVALID, "more shared memory");
    step->shared_bytes = 0;
    step->cluster[0] = 3;
    cuda_bed_says(cuda_bed_run(NULL), QUERN_INVALID, "cluster=3x0x0, the grid must be a multiple");
    cuda_fake.failing = NULL;
    cuda_bed.function.args_bytes = 64;
    at->args_bytes = 72;
    cuda_bed_says(cuda_bed_run(NULL), QUERN_INTERNAL,
                  "step=main: its kernel takes 64 bytes, bind() gave 72");
}
END_TEST

/* ---- Memory -------------------------------------------------------------------------------- */

START_TEST(memory_is_stream_ordered_and_none_is_given_under_capture)
{
    struct cu_stream stream = { &cuda_fake.contexts[0], 0 };

    cuda_bed_push(&cuda_fake.contexts[0]);
    ck_assert_ptr_eq(cuda->alloc(&cuda_bed.device, 100, &stream), (void *)0x7000);
    ck_assert_str_eq(cuda_fake.asked, "alloc");
    ck_assert_ptr_nonnull(cuda->alloc(&cuda_bed.device, 100, NULL));
    ck_assert_str_eq(cuda_fake.asked, "alloc alloc");
    cuda->free(&cuda_bed.device, (void *)0x7000, 100, &stream);
    cuda->free(&cuda_bed.device, NULL, 100, &stream);
    ck_assert_str_eq(cuda_fake.asked, "alloc alloc free");
    stream.capture = 1;
    ck_assert_int_ne(cuda->is_capturing(&cuda_bed.device, &stream), 0);
    ck_assert_ptr_null(cuda->alloc(&cuda_bed.device, 100, &stream));
    ck_assert_int_eq(cuda->is_capturing(&cuda_bed.device, NULL), 0);
    cuda_fake.failing = "is_capturing";
    cuda_fake.code = CU_STREAM_CAPTURE_IMPLICIT;
    ck_assert_int_ne(cuda->is_capturing(&cuda_bed.device, NULL), 0);
    cuda_fake.failing = "alloc";
    cuda_fake.code = CU_OUT_OF_MEMORY;
    ck_assert_ptr_null(cuda->alloc(&cuda_bed.device, 100, NULL));
    cuda_fake.asked[0] = '\0';
    cuda_fake.failing = "copy";
    ck_assert_int_eq(cuda->copy(&cuda_bed.device, &cuda_bed.plan, &cuda_bed.launch, 8, NULL),
                     QUERN_NO_MEMORY);
    cuda_fake.failing = NULL;
    ck_assert_int_eq(cuda->copy(&cuda_bed.device, &cuda_bed.plan, &cuda_bed.launch, 8, NULL), 0);
    ck_assert_str_eq(cuda_fake.asked, "copy copy sync0");
}
END_TEST

START_TEST(a_pointer_that_a_kernel_may_not_have_is_named_for_what_it_is)
{
    ck_assert_int_eq(cuda->check_pointer(&cuda_bed.device, NULL, &cuda_bed.why), 0);
    ck_assert_int_eq(cuda->check_pointer(&cuda_bed.device, (void *)0x02, &cuda_bed.why), 0);
    ck_assert_int_eq(cuda->check_pointer(&cuda_bed.device, (void *)0x11, &cuda_bed.why),
                     0); /* pinned */
    ck_assert_int_eq(cuda->check_pointer(&cuda_bed.device, (void *)0x13, &cuda_bed.why),
                     0); /* managed */
    ck_assert_int_eq(cuda->check_pointer(&cuda_bed.device, (void *)0x12, &cuda_bed.why),
                     QUERN_INVALID);
    ck_assert_str_eq(cuda_bed.why.text, "memory of cuda:1");
    ck_assert_int_eq(cuda->check_pointer(&cuda_bed.device, (void *)0x10, &cuda_bed.why),
                     QUERN_INVALID);
    ck_assert_str_eq(cuda_bed.why.text, "host memory");
    cuda_bed.device.has_host_pages = true;
    ck_assert_int_eq(cuda->check_pointer(&cuda_bed.device, (void *)0x10, &cuda_bed.why), 0);
    ck_assert_int_eq(cuda_fake.depth, 0);
}
END_TEST

/* ---- Time ---------------------------------------------------------------------------------- */

START_TEST(one_launch_is_timed_behind_the_default_stream_on_a_kept_clock)
{
    double nanoseconds = 0;

    cuda_bed_kernel("main");
    ck_assert_int_eq(cuda->time_launch(&cuda_bed.device, &cuda_bed.plan, cuda_bed.functions,
                                       &cuda_bed.launch, NULL, &nanoseconds, &cuda_bed.why),
                     0);
    ck_assert_str_eq(cuda_fake.asked,
                     "retain push stream event event event record0 wait record launch "
                     "record esync elapsed pop");
    ck_assert_double_eq(nanoseconds, 250000);
    cuda_fake.asked[0] = '\0';
    cuda_fake.failing = "launch";
    cuda_fake.code = CU_INVALID_VALUE;
    cuda_bed_says(cuda->time_launch(&cuda_bed.device, &cuda_bed.plan, cuda_bed.functions,
                                    &cuda_bed.launch, NULL, &nanoseconds, &cuda_bed.why),
                  QUERN_INVALID, "step=main");
    ck_assert_str_eq(cuda_fake.asked, "push record0 wait record launch record esync pop");
    cuda_fake.failing = NULL;
    cuda_fake.asked[0] = '\0';
    qn_cuda_time_fini(&cuda_bed.device);
    ck_assert_str_eq(cuda_fake.asked, "push ~event ~event ~event ~stream pop");
}
END_TEST

START_TEST(what_fails_around_a_launch_is_named)
{
    static const char *const calls[][2] = { { "record", "cuEventRecord: " },
                                            { "esync", "cuEventSynchronize: " },
                                            { "elapsed", "cuEventElapsedTime: " },
                                            { "wait", "cuStreamWaitEvent: " } };
    double nanoseconds;

    cuda_bed_kernel("main");
    cuda_fake.code = CU_INVALID_VALUE;
    for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i++) {
        cuda_fake.failing = calls[i][0];
        cuda_bed_says(cuda->time_launch(&cuda_bed.device, &cuda_bed.plan, cuda_bed.functions,
                                        &cuda_bed.launch, NULL, &nanoseconds, &cuda_bed.why),
                      QUERN_INVALID, calls[i][1]);
    }
    cuda_fake.failing = NULL;
    qn_cuda_time_fini(&cuda_bed.device);
}
END_TEST

START_TEST(in_a_context_of_the_callers_the_clock_does_not_outlive_the_call)
{
    double nanoseconds;

    cuda_bed_kernel("main");
    cuda_bed_push(&cuda_fake.contexts[2]);
    ck_assert_int_eq(cuda->time_launch(&cuda_bed.device, &cuda_bed.plan, cuda_bed.functions,
                                       &cuda_bed.launch, NULL, &nanoseconds, &cuda_bed.why),
                     0);
    ck_assert_ptr_nonnull(strstr(cuda_fake.asked, "elapsed ~event ~event ~event ~stream"));
    ck_assert_ptr_null(cuda_bed.device.clock);
}
END_TEST

START_TEST(a_recording_holds_its_launches_between_two_events)
{
    static struct quern_launch launches[3];
    struct qn_recording *recording = NULL;
    double nanoseconds;

    cuda_bed_kernel("main");
    for (int i = 0; i < 3; i++)
        launches[i] = cuda_bed.launch;
    ck_assert_int_eq(cuda->record(&cuda_bed.device, &cuda_bed.plan, cuda_bed.functions, launches, 3,
                                  &recording, &cuda_bed.why),
                     0);
    ck_assert_str_eq(cuda_fake.asked,
                     "retain push stream event event event begin node launch launch launch "
                     "node end make upload sync ~graph pop");
    cuda_fake.asked[0] = '\0';
    ck_assert_int_eq(cuda->replay(&cuda_bed.device, recording, &nanoseconds, &cuda_bed.why), 0);
    ck_assert_str_eq(cuda_fake.asked, "push record0 wait go sync elapsed pop");
    ck_assert_double_eq(nanoseconds, 250000);
    cuda_fake.code = CU_INVALID_VALUE;
    cuda_fake.failing = "go";
    cuda_bed_says(cuda->replay(&cuda_bed.device, recording, &nanoseconds, &cuda_bed.why),
                  QUERN_INVALID, "cuGraphLaunch: ");
    cuda_fake.failing = "sync";
    cuda_bed_says(cuda->replay(&cuda_bed.device, recording, &nanoseconds, &cuda_bed.why),
                  QUERN_INVALID, "cuStreamSynchronize: ");
    cuda_fake.failing = NULL;
    cuda_fake.asked[0] = '\0';
    cuda->forget(&cuda_bed.device, recording);
    ck_assert_str_eq(cuda_fake.asked, "push ~make ~event ~event ~event ~stream pop");
    cuda->forget(&cuda_bed.device, NULL);
}
END_TEST

START_TEST(a_recording_that_fails_leaves_no_capture_and_nothing_behind)
{
    static const char *const calls[] = { "stream", "event", "begin", "node",
                                         "launch", "end",   "make",  "upload" };
    struct qn_recording *recording = NULL;

    cuda_bed_kernel("main");
    for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i++) {
        cuda_fake.asked[0] = '\0';
        cuda_fake.failing = calls[i];
        cuda_fake.code = CU_INVALID_VALUE;
        cuda_bed_says(cuda->record(&cuda_bed.device, &cuda_bed.plan, cuda_bed.functions,
                                   &cuda_bed.launch, 1, &recording, &cuda_bed.why),
                      QUERN_INVALID, "CUDA_ERROR_OF_A_KIND");
        ck_assert_ptr_null(recording);
        ck_assert_int_eq(cuda_fake.depth, 0);
        ck_assert(i < 3 || strstr(cuda_fake.asked, " end"));
        ck_assert(i < 2 || strstr(cuda_fake.asked, "~stream"));
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("cuda_driver");
    TCase *cases = tcase_create("host");

    tcase_add_checked_fixture(cases, cuda_bed_init, NULL);
    tcase_add_test(cases, without_a_driver_open_says_so_in_one_line);
    tcase_add_test(cases, a_driver_that_does_not_serve_is_said_before_the_cpu_does);
    tcase_add_test(cases, opened_to_compile_only_nothing_else_is_done);
    tcase_add_test(cases, doctor_tells_of_driver_and_compiler_whatever_is_here);
    tcase_add_test(cases, an_artifact_runs_on_its_architecture_or_plain_on_a_newer_of_its_major);
    tcase_add_test(cases, a_blob_that_ends_early_or_is_no_cubin_never_reaches_the_driver);
    tcase_add_test(cases, a_module_is_loaded_unloaded_and_refused_in_the_drivers_words);
    tcase_add_test(cases, a_function_may_use_all_shared_memory_and_takes_one_struct);
    tcase_add_test(cases, a_known_device_has_its_shipped_profile_and_another_an_estimated_one);
    tcase_add_test(cases, the_callers_context_is_used_if_it_is_of_the_device_and_left_as_it_was);
    tcase_add_test(cases, a_stream_brings_its_context_and_must_be_of_the_device);
    tcase_add_test(cases, a_lost_context_is_said_to_be_lost);
    tcase_add_test(cases, steps_run_in_order_and_empty_ones_not_at_all);
    tcase_add_test(cases, a_launch_carries_shape_cluster_and_programmatic_start);
    tcase_add_test(cases, a_refused_launch_names_the_limit_that_it_is_over);
    tcase_add_test(cases, memory_is_stream_ordered_and_none_is_given_under_capture);
    tcase_add_test(cases, a_pointer_that_a_kernel_may_not_have_is_named_for_what_it_is);
    tcase_add_test(cases, one_launch_is_timed_behind_the_default_stream_on_a_kept_clock);
    tcase_add_test(cases, what_fails_around_a_launch_is_named);
    tcase_add_test(cases, in_a_context_of_the_callers_the_clock_does_not_outlive_the_call);
    tcase_add_test(cases, a_recording_holds_its_launches_between_two_events);
    tcase_add_test(cases, a_recording_that_fails_leaves_no_capture_and_nothing_behind);
    suite_add_tcase(suite, cases);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
