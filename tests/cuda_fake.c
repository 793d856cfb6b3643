#include "tests/cuda_fake.h"

#include <stdio.h>
#include <string.h>

struct cuda_fake cuda_fake;
static struct cu_stream clock_stream; /* what every object that is made is */

/* What the stand-in is to return. */
static int ask(const char *word)
{
    if (strlen(cuda_fake.asked) + strlen(word) + 2 < sizeof cuda_fake.asked)
        strcat(strcat(cuda_fake.asked, cuda_fake.asked[0] ? " " : ""), word);
    return cuda_fake.failing && !strcmp(cuda_fake.failing, word) ? cuda_fake.code : 0;
}

static struct cu_context *current(void)
{
    return cuda_fake.depth ? cuda_fake.stack[cuda_fake.depth - 1] : NULL;
}

static int fake_error_name(int error, const char **text)
{
    *text = error == CU_ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR_OF_A_KIND";
    return 0;
}

static int fake_error_text(int error, const char **text)
{
    (void)error;
    *text = "a kind of error";
    return 0;
}

static int fake_primary_retain(struct cu_context **context, int device)
{
    *context = &cuda_fake.contexts[device];
    return ask("retain");
}

static int fake_primary_release(int device)
{
    (void)device;
    return ask("release");
}

static int fake_context_get(struct cu_context **context)
{
    *context = current();
    return 0;
}

static int fake_context_push(struct cu_context *context)
{
    cuda_fake.stack[cuda_fake.depth++] = context;
    return ask("push");
}

static int fake_context_pop(struct cu_context **context)
{
    ck_assert_int_gt(cuda_fake.depth, 0);
    *context = cuda_fake.stack[--cuda_fake.depth];
    return ask("pop");
}

static int fake_context_device(int *device)
{
    if (!current())
        return CU_INVALID_CONTEXT;
    *device = current()->device;
    return 0;
}

static int fake_stream_create(struct cu_stream **stream, unsigned flags)
{
    ck_assert_uint_eq(flags, CU_STREAM_NON_BLOCKING);
    clock_stream.context = current();
    *stream = &clock_stream;
    return ask("stream");
}

static int fake_stream_destroy(struct cu_stream *stream)
{
    ck_assert_ptr_eq(stream, &clock_stream);
    return ask("~stream");
}

static int fake_stream_synchronize(struct cu_stream *stream)
{
    return ask(stream ? "sync" : "sync0");
}

static int fake_stream_context(struct cu_stream *stream, struct cu_context **context)
{
    *context = stream->context;
    return cuda_fake.failing && !strcmp(cuda_fake.failing, "stream_context") ? cuda_fake.code : 0;
}

static int fake_stream_wait(struct cu_stream *stream, struct cu_event *event, unsigned flags)
{
    (void)stream;
    (void)event;
    (void)flags;
    return ask("wait");
}

static int fake_stream_is_capturing(struct cu_stream *stream, int *capture)
{
    *capture = stream ? stream->capture : 0;
    return cuda_fake.failing && !strcmp(cuda_fake.failing, "is_capturing") ? cuda_fake.code : 0;
}

static int fake_launch(const struct cu_launch *launch, struct cu_function *function,
                       void **parameters, void **extra)
{
    (void)function;
    (void)parameters;
    ck_assert_ptr_null(extra);
    ck_assert_ptr_nonnull(current());
    cuda_fake.launched = *launch;
    memcpy(cuda_fake.attributes, launch->attributes,
           launch->attribute_count * sizeof cuda_fake.attributes[0]);
    return ask("launch");
}

_Static_assert(sizeof(struct cuda_fake_map) == QUERN_MAP_BYTES, "as large as a map");
_Atomic int cuda_fake_encoded, cuda_fake_replaced;

static int fake_map_encode(void *map, int dtype, uint32_t rank, void *data, const uint64_t *dims,
                           const uint64_t *strides, const uint32_t *box,
                           const uint32_t *element_strides, int interleave, int swizzle,
                           int l2_promotion, int fill)
{
    struct cuda_fake_map made = { .data = data, .dtype = (uint8_t)dtype };

    made.rank = (uint8_t)rank;
    made.swizzle = (uint8_t)swizzle;
    for (uint32_t i = 0; i < rank; i++) {
        made.dims[i] = (uint32_t)dims[i];
        made.box[i] = box[i];
        if (i + 1 < rank)
            made.strides[i] = strides[i];
        ck_assert_uint_eq(element_strides[i], 1);
    }
    ck_assert(!interleave && l2_promotion == 3 && !fill && (uintptr_t)map % 64 == 0);
    memcpy(map, &made, sizeof made);
    cuda_fake_encoded++;
    return cuda_fake.failing && !strcmp(cuda_fake.failing, "encode") ? cuda_fake.code : 0;
}

static int fake_map_replace(void *map, void *data)
{
    memcpy(map, &data, sizeof data);
    cuda_fake_replaced++;
    return 0;
}

static int fake_memory_alloc_async(uint64_t *data, size_t bytes, struct cu_stream *stream)
{
    (void)bytes;
    (void)stream;
    *data = 0x7000;
    return ask("alloc");
}

static int fake_memory_free_async(uint64_t data, struct cu_stream *stream)
{
    (void)stream;
    ck_assert_uint_eq(data, 0x7000);
    return ask("free");
}

static int fake_memory_copy(uint64_t to, uint64_t from, size_t bytes, struct cu_stream *stream)
{
    (void)to;
    (void)from;
    (void)bytes;
    (void)stream;
    return ask("copy");
}

static int fake_memory_set(uint64_t data, unsigned char byte, size_t bytes,
                           struct cu_stream *stream)
{
    (void)data;
    (void)byte;
    (void)bytes;
    (void)stream;
    return ask("fill");
}

/* Addresses say what they are: 0xDT, device D, type T; 3 is managed. */
static int fake_pointer_attribute(void *value, int attribute, uint64_t data)
{
    int ordinal = (int)(data >> 4);

    ck_assert_int_eq(attribute, CU_POINTER_DEVICE_ORDINAL);
    if (!(data & 15))
        return CU_INVALID_VALUE;
    memcpy(value, &ordinal, sizeof ordinal);
    return 0;
}

static int fake_pointer_attributes(unsigned count, const int *list, void **values, uint64_t data)
{
    unsigned type = data & 15, is_managed = type == 3;
    int ordinal = (int)(data >> 4);

    for (unsigned i = 0; i < count; i++) {
        if (list[i] == CU_POINTER_IS_MANAGED)
            memcpy(values[i], &is_managed, sizeof is_managed);
        else if (list[i] == CU_POINTER_MEMORY_TYPE)
            memcpy(values[i], &type, sizeof type);
        else
            memcpy(values[i], &ordinal, sizeof ordinal);
    }
    return 0;
}

static int fake_event_create(struct cu_event **event, unsigned flags)
{
    (void)flags;
    *event = (struct cu_event *)&clock_stream;
    return ask("event");
}

static int fake_event_destroy(struct cu_event *event)
{
    (void)event;
    return ask("~event");
}

static int fake_event_record(struct cu_event *event, struct cu_stream *stream)
{
    (void)event;
    return ask(stream ? "record" : "record0");
}

static int fake_event_record_flags(struct cu_event *event, struct cu_stream *stream, unsigned flags)
{
    (void)event;
    (void)stream;
    ck_assert_uint_eq(flags, CU_EVENT_RECORD_EXTERNAL);
    return ask("node");
}

static int fake_event_synchronize(struct cu_event *event)
{
    (void)event;
    return ask("esync");
}

static int fake_event_elapsed(float *milliseconds, struct cu_event *start, struct cu_event *stop)
{
    (void)start;
    (void)stop;
    *milliseconds = 0.25f;
    return ask("elapsed");
}

static int fake_capture_begin(struct cu_stream *stream, int mode)
{
    (void)stream;
    ck_assert_int_eq(mode, CU_CAPTURE_RELAXED);
    return ask("begin");
}

static int fake_capture_end(struct cu_stream *stream, struct cu_graph **graph)
{
    (void)stream;
    *graph = (struct cu_graph *)&clock_stream;
    return ask("end");
}

static int fake_graph_destroy(struct cu_graph *graph)
{
    (void)graph;
    return ask("~graph");
}

static int fake_graph_instantiate(struct cu_graph_exec **exec, struct cu_graph *graph,
                                  unsigned long long flags)
{
    *exec = (struct cu_graph_exec *)graph;
    ck_assert_uint_eq(flags, 0);
    return ask("make");
}

static int fake_graph_upload(struct cu_graph_exec *exec, struct cu_stream *stream)
{
    (void)exec;
    (void)stream;
    return ask("upload");
}

static int fake_graph_launch(struct cu_graph_exec *exec, struct cu_stream *stream)
{
    (void)exec;
    (void)stream;
    return ask("go");
}

static int fake_graph_exec_destroy(struct cu_graph_exec *exec)
{
    (void)exec;
    return ask("~make");
}

static int fake_device_name(char *name, int bytes, int device)
{
    (void)device;
    snprintf(name, (size_t)bytes, "%s", cuda_fake.name);
    return 0;
}

static int fake_device_attribute(int *value, int attribute, int device)
{
    static const int values[][2] = {
        { CU_CLOCK_KHZ, 1980000 },         { CU_SM_COUNT, 132 },
        { CU_MEMORY_CLOCK_KHZ, 3201000 },  { CU_MEMORY_BUS_BITS, 6144 },
        { CU_L2_BYTES, 62914560 },         { CU_COMPUTE_MAJOR, 9 },
        { CU_SHARED_BYTES_OPTIN, 232448 }, { CU_MEMORY_POOLS_SUPPORTED, 1 },
    };

    (void)device;
    *value = 0;
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++)
        if (values[i][0] == attribute)
            *value = values[i][1];
    return 0;
}

static int fake_context_synchronize(void)
{
    return ask("csync");
}

static int fake_library_module(struct cu_module **module, struct cu_library *library)
{
    *module = (struct cu_module *)library;
    return 0;
}

static int fake_library_load(struct cu_library **library, const void *blob, void *jit_options,
                             void *jit_values, unsigned jit_count, void *options, void *values,
                             unsigned count)
{
    ck_assert(blob && !jit_options && !jit_values && !jit_count && !options && !values && !count);
    *library = (struct cu_library *)&clock_stream;
    return ask("load");
}

static int fake_library_unload(struct cu_library *library)
{
    (void)library;
    return ask("unload");
}

static int fake_library_kernel(struct cu_kernel **kernel, struct cu_library *library,
                               const char *name)
{
    *kernel = (struct cu_kernel *)library;
    ck_assert_str_eq(name, "main");
    return ask("kernel");
}

static int fake_kernel_function(struct cu_function **function, struct cu_kernel *kernel)
{
    *function = (struct cu_function *)kernel;
    return ask("function");
}

static int fake_kernel_get(int *value, int attribute, struct cu_kernel *kernel, int device)
{
    (void)kernel;
    (void)device;
    *value = cuda_fake.kernel_attributes[attribute];
    return ask("get");
}

static int fake_kernel_set(int attribute, int value, struct cu_kernel *kernel, int device)
{
    (void)kernel;
    (void)device;
    cuda_fake.kernel_attributes[attribute] = value;
    return ask(attribute == CU_KERNEL_NON_PORTABLE_CLUSTER ? "cluster" : "set");
}

static int fake_kernel_parameter(struct cu_kernel *kernel, size_t index, size_t *offset,
                                 size_t *bytes)
{
    (void)kernel;
    (void)offset;
    *bytes = index < 2 ? cuda_fake.parameters[index] : 0;
    return *bytes ? 0 : CU_INVALID_VALUE;
}

const struct qn_cuda_driver cuda_fake_driver = {
    .error_name = fake_error_name,
    .error_text = fake_error_text,
    .device_name = fake_device_name,
    .device_attribute = fake_device_attribute,
    .primary_retain = fake_primary_retain,
    .primary_release = fake_primary_release,
    .context_get = fake_context_get,
    .context_push = fake_context_push,
    .context_pop = fake_context_pop,
    .context_device = fake_context_device,
    .context_synchronize = fake_context_synchronize,
    .stream_create = fake_stream_create,
    .stream_destroy = fake_stream_destroy,
    .stream_synchronize = fake_stream_synchronize,
    .stream_context = fake_stream_context,
    .stream_wait = fake_stream_wait,
    .stream_is_capturing = fake_stream_is_capturing,
    .library_load = fake_library_load,
    .library_module = fake_library_module,
    .library_unload = fake_library_unload,
    .library_kernel = fake_library_kernel,
    .kernel_function = fake_kernel_function,
    .kernel_get = fake_kernel_get,
    .kernel_set = fake_kernel_set,
    .kernel_parameter = fake_kernel_parameter,
    .launch = fake_launch,
    .map_encode = fake_map_encode,
    .map_replace = fake_map_replace,
    .memory_alloc_async = fake_memory_alloc_async,
    .memory_free_async = fake_memory_free_async,
    .memory_copy = fake_memory_copy,
    .memory_set = fake_memory_set,
    .pointer_attribute = fake_pointer_attribute,
    .pointer_attributes = fake_pointer_attributes,
    .event_create = fake_event_create,
    .event_destroy = fake_event_destroy,
    .event_record = fake_event_record,
    .event_record_flags = fake_event_record_flags,
    .event_synchronize = fake_event_synchronize,
    .event_elapsed = fake_event_elapsed,
    .capture_begin = fake_capture_begin,
    .capture_end = fake_capture_end,
    .graph_destroy = fake_graph_destroy,
    .graph_instantiate = fake_graph_instantiate,
    .graph_upload = fake_graph_upload,
    .graph_launch = fake_graph_launch,
    .graph_exec_destroy = fake_graph_exec_destroy,
    .version = 13000,
};

/* ---- A device on it ------------------------------------------------------------------------ */

struct cuda_bed cuda_bed;

void cuda_bed_init(void)
{
    struct qn_device *device = &cuda_bed.device;

    memset(&cuda_bed, 0, sizeof cuda_bed);
    memset(&cuda_fake, 0, sizeof cuda_fake);
    cuda_fake.contexts[1].device = 1;
    cuda_fake.name = "NVIDIA H200";
    device->cu = &cuda_fake_driver;
    device->target = (struct quern_target){ .kind = QUERN_CUDA, .sm = 90, .sm_suffix = 'a' };
    device->shared_optin = 232448;
    device->has_pools = true;
    snprintf(device->subject, sizeof device->subject, "device=cuda:0");
    pthread_mutex_init(&device->lock, NULL);
    pthread_mutex_init(&device->clock_lock, NULL);
    cuda_bed.function.shared_limit = device->shared_optin;
}

struct quern_step *cuda_bed_kernel(const char *name)
{
    int index = cuda_bed.plan.step_count;
    struct quern_step_launch *at = &cuda_bed.launch.steps[index];
    struct quern_step *step = quern_plan_kernel(&cuda_bed.plan, name, "none.cu", "none");

    cuda_bed.functions[index] = &cuda_bed.function;
    step->threads[0] = 128;
    step->threads[1] = step->threads[2] = 1;
    at->grid[0] = 4;
    at->grid[1] = 2;
    at->grid[2] = 1;
    at->args_bytes = QUERN_ARGS_BYTES;
    return step;
}

int cuda_bed_run(void *stream)
{
    cuda_fake.asked[0] = '\0';
    return qn_backend_cuda.launch(&cuda_bed.device, &cuda_bed.plan, cuda_bed.functions,
                                  &cuda_bed.launch, stream, QN_GRID_PARALLEL, &cuda_bed.why);
}

void cuda_bed_push(struct cu_context *context)
{
    cuda_fake.stack[cuda_fake.depth++] = context;
}

void cuda_bed_says(int got, int status, const char *text)
{
    const char *line = cuda_bed.why.text;

    ck_assert_msg(got == status, "%d, not %d: %s", got, status, line);
    ck_assert_msg(strstr(line, text), "\"%s\" lacks \"%s\"", line, text);
    ck_assert_ptr_null(strchr(line, '\n'));
}
