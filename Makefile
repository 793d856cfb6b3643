# quern. `make help` lists the targets; V=1 shows the commands; everything is built below $(B).
#
#   templates/*/FAMILY.def ---- tools/gen_header.c --> $(B)/include/quern/FAMILY.h
#   templates/ (device code) -- tools/embed.c -------> $(B)/gen/*.c --+
#   jit/ cache/ templates/*/*.c --------------------------------------+--> $(B)/libquern.{so,a}
#   tools/ examples/ tests/ ----------------------------------------------> programs linked to it
#
# Sources are found by wildcard: a module, family, test or example needs no line here.
ifeq ($(MAKELEVEL),0)
MAKEFLAGS := $(MAKEFLAGS) --no-print-directory -j$(shell nproc)
endif

B ?= build
PREFIX ?= /usr/local
BINDIR ?= $(PREFIX)/bin
LIBDIR ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
HOSTCC ?= cc
CLANG_FORMAT ?= clang-format-14
Q := $(if $(V),,@)

VERSION := $(shell sed -n 's/^\#define QUERN_VERSION "\(.*\)"/\1/p' include/quern.h)
SONAME := libquern.so.0

QN_CPPFLAGS := -Iinclude -I$(B)/include -I. -D_GNU_SOURCE= $(CPPFLAGS)
CFLAGS ?= -O2 -g
QN_CFLAGS := -std=gnu11 $(CFLAGS) -fPIC -fopenmp -fvisibility=hidden -Wall -Wextra -Wshadow \
	-Wstrict-prototypes -Wmissing-prototypes -Wvla \
	$(if $(SANITIZE),-fsanitize=$(SANITIZE) -fno-sanitize-recover=all -fno-omit-frame-pointer)
WARNING_FLAGS := $(if $(CI)$(WERROR),-Werror)

# $(call library,name): shared, or with STATIC=1 the archive.
library = $(foreach name,$1,$(if $(STATIC),-l:lib$(name).a,-l$(name)))
LIBS := -Wl,--as-needed $(call library,sqlite3 xxhash z) -fopenmp -ldl -lpthread -lm
ifdef STATIC # a build that travels, with all but libc: libgomp.a suits no shared library
LIBS += -Wl,-rpath,'$$ORIGIN:$$ORIGIN/..:$$ORIGIN/../..'
TRAVELS := $(B)/libgomp.so.1
$(TRAVELS): | $(B)/gen/
	$(Q)cp $(shell $(CC) -print-file-name=libgomp.so.1) $@
endif
TOOL_LIBS := $(call library,jansson sqlite3) -lm
CHECK_LIBS := $(call library,check subunit) -lrt

DEFS := $(filter-out %_cases.def,$(wildcard templates/*/*.def))
CASES := $(wildcard templates/*/*_cases.def)
FAMILIES := $(sort $(basename $(notdir $(DEFS))))
HEADERS := $(FAMILIES:%=$(B)/include/quern/%.h)
HOST_TEMPLATES := $(filter-out %_cpu.c,$(wildcard templates/*/*.c))
# Device code is embedded. A header is the host's where a .c of its name is beside it.
DEVICE_SOURCES := $(filter-out $(HOST_TEMPLATES:.c=.h),$(sort $(shell find templates \
	-name '*_cpu.c' -o -name '*.cu' -o -name '*.cuh' -o -name '*.h')))
LIB_SOURCES := $(wildcard jit/*.c jit/*/*.c cache/*.c) $(HOST_TEMPLATES)
LIB_OBJECTS := $(LIB_SOURCES:%.c=$(B)/obj/%.o) \
	$(patsubst %,$(B)/obj/gen/%.o,templates schema families)
TOOL_OBJECTS := $(patsubst %.c,$(B)/obj/%.o,$(filter-out tools/gen_% tools/embed%,\
	$(wildcard tools/*.c)))
TOOL_MODULES := $(filter-out %/quern.o,$(TOOL_OBJECTS)) # what a suite may test: all but main()
EXAMPLES := $(patsubst %.c,$(B)/%,$(filter-out examples/plugin_%,$(wildcard examples/*.c)))
BENCHES := $(patsubst %.c,$(B)/%.so,$(wildcard bench/*.c))
SUITES := $(patsubst %.c,$(B)/%,$(wildcard tests/test_*.c))
GPU_SUITES := $(patsubst %.c,$(B)/%,$(wildcard tests/gpu/test_*.c))
GPU_SCRIPTS := $(wildcard tests/gpu/*_test.sh) \
	$(wildcard python/tests/*torch_test.py)
PLUGINS := $(patsubst examples/%.c,$(B)/tests/%.so,$(wildcard examples/plugin_*.c))
# Every other tests/*.c is shared by the suites.
SUITE_COMMON := $(patsubst %.c,$(B)/obj/%.o,$(filter-out tests/test_%,$(wildcard tests/*.c)))
SCRIPTS := $(wildcard $(foreach d,tests python/tests bench/tests,$d/*_test.sh $d/*_test.py))
FORMATTED = $(shell find include jit cache templates tools bench examples tests \
	-name '*.[ch]' -o -name '*.cu' -o -name '*.cuh')

all: $(B)/libquern.so $(B)/libquern.a $(B)/quern $(EXAMPLES) $(BENCHES) $(TRAVELS) ## all but tests
objects: $(LIB_OBJECTS) ## only compile the library (to try a cross compiler with CC=)
tests: $(SUITES) $(PLUGINS) ## only build the suites
.PHONY: all objects tests demo test test-all check-gpu check-san bench bench-gpu layers format \
	format-check install deps help clean FORCE
.SECONDARY:
.DELETE_ON_ERROR:

# ---- Generated sources ----

$(B)/gen/embed: tools/embed.c | $(B)/gen/
	@echo "  HOSTCC  $@"
	$(Q)$(HOSTCC) -std=gnu11 -O1 $< -o $@
$(B)/gen/templates.c: $(DEVICE_SOURCES) $(B)/gen/embed $(B)/gen/inputs
	$(Q)$(B)/gen/embed templates templates $(DEVICE_SOURCES) > $@
$(B)/gen/schema.c: cache/schema.sql $(B)/gen/embed
	$(Q)$(B)/gen/embed text qn_schema_sql $< > $@
$(B)/gen/families.c: $(B)/gen/inputs
	$(Q)(printf '#include <quern/%s.h>\n' $(FAMILIES); echo '#include "jit/embedded.h"'; \
	echo 'const struct quern_family *const qn_builtin_families[] = {'; \
	printf '    &quern_family_%s,\n' $(FAMILIES); echo '    NULL,'; echo '};') > $@
# For the suites: every family's cases, between definitions of CASE_FAMILY.
$(B)/gen/all_cases.def: $(B)/gen/inputs
	$(Q)for c in $(CASES); do printf '#define CASE_FAMILY "%s"\n#include "%s"\n#undef CASE_FAMILY\n' \
	"$$(basename $$c _cases.def)" $$c; done > $@

define header_rule
$(B)/include/quern/$(basename $(notdir $1)).h: $1 tools/gen_header.c include/quern/family_def.h \
		include/quern/family.h include/quern.h | $(B)/gen/ $(B)/include/quern/
	@echo "  HEADER  $$@"
	$(Q)$(HOSTCC) -std=gnu11 -Iinclude -I. -DQUERN_DEF='"$1"' \
	-DFAMILY='"$(basename $(notdir $1))"' tools/gen_header.c \
	-o $(B)/gen/header_$(basename $(notdir $1))
	$(Q)$(B)/gen/header_$(basename $(notdir $1)) > $$@
endef
$(foreach def,$(DEFS),$(eval $(call header_rule,$(def))))

# Rewritten only when what they hold changes: the list of sources, and the flags.
remember = @echo '$1' | cmp -s - $@ || echo '$1' > $@
$(B)/gen/inputs: FORCE | $(B)/gen/
	$(call remember,$(LIB_SOURCES) $(DEVICE_SOURCES) $(DEFS) $(CASES))
$(B)/gen/flags: FORCE | $(B)/gen/
	$(call remember,$(CC) $(QN_CPPFLAGS) $(QN_CFLAGS) $(LDFLAGS) $(LIBS))
%/:
	@mkdir -p $@

# ---- Objects, libraries, programs ----

compile = @mkdir -p $(@D); echo "  CC      $@"; \
	$(if $(V),set -x;) $(CC) $(QN_CPPFLAGS) $(QN_CFLAGS) $(WARNING_FLAGS) -MMD -MP -c $< -o $@
link = @mkdir -p $(@D); echo "  LINK    $@"; $(if $(V),set -x;) $(CC) $(QN_CFLAGS) $(LDFLAGS) -o $@

$(B)/obj/templates/%.o $(B)/obj/tests/%.o: QN_CPPFLAGS += -Itemplates -I$(B)/gen
$(B)/obj/examples/%.o: QN_CPPFLAGS += -Iexamples
$(B)/obj/gen/%.o: $(B)/gen/%.c $(B)/gen/flags | $(HEADERS)
	$(compile)
$(B)/obj/%.o: %.c $(B)/gen/flags | $(HEADERS) $(B)/gen/all_cases.def
	$(compile)

$(B)/$(SONAME): $(LIB_OBJECTS) $(B)/gen/inputs
	$(link) -shared -Wl,-soname,$(SONAME) $(if $(SANITIZE),,-Wl$(,)-z$(,)defs) \
	-Wl,--exclude-libs,ALL $(LIB_OBJECTS) $(LIBS)
$(B)/libquern.so: $(B)/$(SONAME)
	$(Q)ln -sf $(SONAME) $@
$(B)/libquern.a: $(LIB_OBJECTS) $(B)/gen/inputs
	@echo "  AR      $@"
	$(Q)rm -f $@ && $(AR) rcs $@ $(LIB_OBJECTS)
# $(B)/quern finds its library beside it, $(B)/installed/quern where `make install` puts it.
$(B)/quern: RPATH := $$ORIGIN
$(B)/installed/quern: RPATH := $$ORIGIN/$(shell realpath -m --relative-to=$(BINDIR) $(LIBDIR))
$(B)/quern $(B)/installed/quern: $(TOOL_OBJECTS) $(B)/libquern.so
	$(link) $(TOOL_OBJECTS) -L$(B) -lquern -Wl,-rpath,'$(RPATH)' $(TOOL_LIBS)
$(EXAMPLES): $(B)/%: $(B)/obj/%.o $(B)/libquern.so
	$(link) $< -L$(B) -lquern -Wl,-rpath,'$$ORIGIN/..' -ldl -lpthread -lm
$(SUITES) $(GPU_SUITES): $(B)/%: $(B)/obj/%.o $(SUITE_COMMON) $(TOOL_MODULES) $(B)/libquern.a
	$(link) -rdynamic $< $(SUITE_COMMON) $(TOOL_MODULES) -Wl,--whole-archive $(B)/libquern.a \
	-Wl,--no-whole-archive $(LIBS) $(TOOL_LIBS) $(CHECK_LIBS)
$(PLUGINS): $(B)/tests/%.so: $(B)/obj/examples/%.o
	$(link) -shared $<
$(BENCHES): $(B)/bench/%.so: $(B)/obj/bench/%.o
	$(link) -shared -Wl,--as-needed $< -lm

, := ,
-include $(shell find $(B)/obj -name '*.d' 2>/dev/null)

# ---- What people run ----

deps: ## install what building, the demo and the tests need (says what it does)
	@tools/deps.sh base
demo: deps ## install what is missing, build, run the main job twice, print the table
	@$(MAKE) all
	@tools/demo.sh $(B)
test: deps ## install what is missing, build, run every suite that needs no device
	@$(MAKE) all tests
	@tools/run_tests.sh $(B) $(SUITES) $(SCRIPTS)
test-all: ## `make test` with nothing sampled: every config of every case
	@QUERN_TEST_ALL=1 TEST_TIMEOUT=$${TEST_TIMEOUT:-7200} $(MAKE) test
check-gpu: ## every case on a device (CK_FORK=no, one suite at a time)
	@$(MAKE) all $(GPU_SUITES)
	@CK_FORK=no JOBS=1 TEST_TIMEOUT=900 tools/run_tests.sh $(B) $(GPU_SUITES) $(GPU_SCRIPTS)
sanitized = $(MAKE) B=$(B)/$1 SANITIZE=$2 all tests && \
	$3 TEST_TIMEOUT=900 tools/run_tests.sh $(B)/$1 $(SUITES:$(B)/%=$(B)/$1/%)
check-san: ## the C suites under ASan and UBSan, then under TSan
	+@$(call sanitized,asan,address$(,)undefined,UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1)
	+@$(call sanitized,tsan,thread,OMP_NUM_THREADS=1 TSAN_OPTIONS=suppressions=tests/tsan.supp)
BENCH ?= gemm
beside_name = $(B)/bench/$(if $(filter-out gemm,$(BENCH)),$(BENCH)_)$1
beside = QUERN_LIBRARY=$(abspath $(B))/$(SONAME) $1 bench/beside.py $(BENCH) --device $2 \
	--json $(call beside_name,$2).json --page $(call beside_name,$2) $3
bench: deps ## compare with OpenBLAS, oneDNN and MKL here; BENCH=kda, attention, ...: NumPy
	-@tools/deps.sh bench
	@$(MAKE) all
	@python=$$(bench/python.sh $(B)) && $(call beside,$$python,cpu,$(ARGS))
bench-gpu: ## compare with cuBLASLt, torch and Triton on a GPU; BENCH= as above; installs nothing
	@$(MAKE) all
	@$(call beside,$${PYTHON:-python3},cuda,--shapes gpu --starts $(ARGS))
layers: ## check the #include edges against the layout
	@python3 tools/layers.py
format: ## reformat every C and CUDA source
	@tools/deps.sh format
	@$(CLANG_FORMAT) -i $(FORMATTED)
format-check: ## fail if `make format` would change something or a line is over 100
	@tools/deps.sh format
	@$(CLANG_FORMAT) --dry-run --Werror $(FORMATTED)
	@! LC_ALL=C.UTF-8 grep -nE '.{101}' $(FORMATTED)

install: all $(B)/installed/quern ## install below PREFIX (/usr/local); DESTDIR is honoured
	install -d $(addprefix $(DESTDIR),$(BINDIR) $(LIBDIR)/pkgconfig $(INCLUDEDIR)/quern)
	install $(B)/installed/quern $(DESTDIR)$(BINDIR)/quern
	install -m 644 $(B)/$(SONAME) $(DESTDIR)$(LIBDIR)/libquern.so.$(VERSION)
	cd $(DESTDIR)$(LIBDIR) && ln -sf libquern.so.$(VERSION) $(SONAME) && ln -sf $(SONAME) libquern.so
	install -m 644 $(B)/libquern.a $(DESTDIR)$(LIBDIR)/
	install -m 644 include/quern.h $(DESTDIR)$(INCLUDEDIR)/
	install -m 644 include/quern/*.h $(HEADERS) $(DESTDIR)$(INCLUDEDIR)/quern/
	install -m 644 -Dt $(DESTDIR)$(PREFIX)/share/doc/quern LICENSE README.md
	for d in docs examples; do install -m 644 -Dt $(DESTDIR)$(PREFIX)/share/doc/quern/$$d $$d/*; done
	sed -e 's|@PREFIX@|$(PREFIX)|; s|@LIBDIR@|$(LIBDIR)|; s|@INCLUDEDIR@|$(INCLUDEDIR)|' \
		-e 's|@VERSION@|$(VERSION)|' quern.pc.in > $(DESTDIR)$(LIBDIR)/pkgconfig/quern.pc

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | \
	awk -F'|' '{ printf "  %-12s %s\n", $$1, $$2 }'
	@echo "Variables: V=1 WERROR=1 STATIC=1 SANITIZE=... CC CFLAGS B PREFIX DESTDIR ARGS BENCH (bench)"
clean: ## remove $(B)
	rm -rf $(B)
