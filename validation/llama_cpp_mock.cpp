// What llama.cpp would place and reserve on CUDA devices, on a machine without one.
//
// Registers pretend devices with the rules of ggml's CUDA backend (@0c1e57098: buffer sizes and alignment
// ggml_backend_cuda_buffer_type_get_alloc_size, supports_op, offload_op, ggml_cuda_get_best_fattn_kernel), loads files
// with no_alloc and prints each buffer's bytes [model, cache, compute] as one JSON object a line of input:
//
//   FILE.gguf n_ctx=8192 ngl=12 ts=3,1 ot=ffn_up=CPU,ffn_down=CUDA0 lora=ADAPTER.gguf ...
//
// Two things differ between no_alloc and a real allocation, and are mended here: reserving sizes resets the scheduler,
// so that nodes which the model's code pins to a device are forgotten; and the sizes kept are those of one graph, where
// a buffer keeps the largest of all graphs reserved.
//
// With fit=1 the line asks what --fit would choose for devices with so many bytes free (free=, target=, ctx_min=; n_ctx=0: not
// set by the user), as common/fit.cpp measures them: without those two.
//
// Build beside llama.cpp's libraries (GGML_SCHED_MAX_COPIES=4, as CUDA builds have it), with its include, src, ggml/include
// and ggml/src folders: g++ -std=c++17 -rdynamic llama_cpp_mock.cpp -lllama -lggml -lggml-base -lggml-cpu -ldl;
// for fit=1 with -DWITH_FIT, the common folder, and common/fit.cpp, log.cpp, json.cpp.

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <list>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "ggml-backend-impl.h"
#include "ggml-cpu.h"
#include "ggml-impl.h"
#include "llama-context.h"
#include "llama-ext.h"
#include "llama.h"
#ifdef WITH_FIT
#include "fit.h"
#endif

// ---- real allocation's sizes in no_alloc ----

static bool reserving = false, mending = true;
static size_t * kept = nullptr;
static const int MOST = 32;

template <class F> static F next(const char * name) { return (F) dlsym(RTLD_NEXT, name); }

extern "C" void ggml_backend_sched_reset(ggml_backend_sched_t s) {
    static auto real = next<void (*)(ggml_backend_sched_t)>("ggml_backend_sched_reset");
    if (!reserving || !mending) real(s);
}

extern "C" void ggml_backend_sched_reserve_size(ggml_backend_sched_t s, ggml_cgraph * g, size_t * sizes) {
    static auto real = next<void (*)(ggml_backend_sched_t, ggml_cgraph *, size_t *)>("ggml_backend_sched_reserve_size");
    reserving = true;
    real(s, g, kept = sizes);
    reserving = false;
}

extern "C" void ggml_backend_sched_split_graph(ggml_backend_sched_t s, ggml_cgraph * g) {
    static auto real = next<void (*)(ggml_backend_sched_t, ggml_cgraph *)>("ggml_backend_sched_split_graph");
    if (reserving || !kept || !mending) return real(s, g);
    size_t found[MOST] = {}, *largest = kept;
    ggml_backend_sched_reserve_size(s, g, found);
    kept = largest;
    for (int i = 0; i < ggml_backend_sched_get_n_backends(s); i++) kept[i] = std::max(kept[i], found[i]);
}

// ---- pretend devices ----

struct Device { std::string name; ggml_backend_buffer_type buft; ggml_backend_device dev; };
static std::vector<Device *> devices;
static ggml_backend_reg registry;
static size_t free_bytes = size_t(1) << 40;
static ggml_backend_buffer_type host_buft;

static const char * buft_name(ggml_backend_buffer_type_t b) { return ((Device *) b->context)->name.c_str(); }
static bool is_ours(ggml_backend_buffer_type_t b) { return b->iface.get_name == buft_name; }
static const char * device_name(ggml_backend_dev_t d) { return ((Device *) d->context)->name.c_str(); }

static ggml_backend_buffer_t buft_alloc(ggml_backend_buffer_type_t b, size_t size) {
    ggml_backend_buffer_i i = {};
    i.free_buffer = [](ggml_backend_buffer_t) {};
    i.get_base = [](ggml_backend_buffer_t) { return (void *) 0x1000; };
    i.clear = [](ggml_backend_buffer_t, uint8_t) {};
    i.set_tensor = [](ggml_backend_buffer_t, ggml_tensor *, const void *, size_t, size_t) {};
    return ggml_backend_buffer_init(b, i, nullptr, size);
}

static size_t buft_size(ggml_backend_buffer_type_t, const ggml_tensor * t) {
    size_t size = ggml_nbytes(t);
    if (t->op == GGML_OP_FLASH_ATTN_EXT) {
        const auto * k = t->src[1], * v = t->src[2];
        const bool is_part = v->view_src && v->view_src == k->view_src && v->view_offs == k->view_offs;  // latent attention
        for (int i = 1; i < (is_part ? 2 : 3); i++) {
            if (t->src[i]->type != GGML_TYPE_F16) size = GGML_PAD(size, 128) + 2 * ggml_nelements(t->src[i]);
        }
    }
    if (ggml_is_quantized(t->type) && t->ne[0] % 512) size += ggml_row_size(t->type, 512 - t->ne[0] % 512);
    return size;
}

static bool has_attention_kernel(const ggml_tensor * op) {
    const auto * k = op->src[1];
    const int64_t grouped = op->src[0]->ne[2] / k->ne[2], values = op->src[2]->ne[0];
    for (int i = 1; i < 3; i++) {
        switch (op->src[i]->type) {
            case GGML_TYPE_F32: case GGML_TYPE_F16: case GGML_TYPE_BF16: case GGML_TYPE_Q4_0: case GGML_TYPE_Q4_1:
            case GGML_TYPE_Q5_0: case GGML_TYPE_Q5_1: case GGML_TYPE_Q8_0: break;
            default: return false;
        }
    }
    switch (k->ne[0]) {
        case 40: case 64: case 72: case 80: case 96: case 112: case 128: case 256: return values == k->ne[0];
        case 192: return values == 128 && grouped % 8 == 0;
        case 320: return values == 256 && grouped % 32 == 0;
        case 512: return values == 512 && grouped >= 2;
        case 576: return values == 512 && grouped >= 2;
        default: return false;
    }
}

static bool device_supports(ggml_backend_dev_t d, const ggml_tensor * op) {
    for (auto * s : op->src) {
        if (s && s->buffer && is_ours(s->buffer->buft) && s->buffer->buft->device != d) return false;
    }
    if (op->op == GGML_OP_FLASH_ATTN_EXT) return has_attention_kernel(op);
    if (op->op == GGML_OP_GET_ROWS) {
        switch (op->src[0]->type) {
            case GGML_TYPE_F16: case GGML_TYPE_F32: case GGML_TYPE_BF16: case GGML_TYPE_I32: case GGML_TYPE_Q4_0:
            case GGML_TYPE_Q4_1: case GGML_TYPE_Q5_0: case GGML_TYPE_Q5_1: case GGML_TYPE_Q8_0: return true;
            default: return false;
        }
    }
    return true;
}

static bool device_takes_over(ggml_backend_dev_t, const ggml_tensor * op) {
    switch (op->op) {
        case GGML_OP_GET_ROWS: return false;
        case GGML_OP_MUL_MAT: return op->ne[1] >= 32;
        case GGML_OP_MUL_MAT_ID: case GGML_OP_ROPE: return op->ne[2] >= 32;
        default: return ggml_nrows(op) >= 32;
    }
}

static ggml_backend_t backend_of(ggml_backend_dev_t d, const char *) {
    static ggml_guid id = {1, 2, 3};
    auto * b = new ggml_backend{};
    b->guid = &id;
    b->device = d;
    b->iface.get_name = [](ggml_backend_t x) { return device_name(x->device); };
    b->iface.free = [](ggml_backend_t x) { delete x; };
    b->iface.synchronize = [](ggml_backend_t) {};
    b->iface.graph_compute = [](ggml_backend_t, ggml_cgraph *) { return GGML_STATUS_SUCCESS; };
    b->iface.event_record = b->iface.event_wait = [](ggml_backend_t, ggml_backend_event_t) {};
    return b;
}

static void describe(ggml_backend_dev_t d, ggml_backend_dev_props * p) {
    *p = {};
    p->name = p->description = device_name(d);
    p->memory_free = p->memory_total = free_bytes;
    p->type = GGML_BACKEND_DEVICE_TYPE_GPU;
    p->caps = {true, true, false, true, true};
}

static void add_device(int index) {
    auto * d = new Device{"CUDA" + std::to_string(index), {}, {}};
    auto & b = d->buft;
    b.context = d;
    b.device = &d->dev;
    b.iface.get_name = buft_name;
    b.iface.alloc_buffer = buft_alloc;
    b.iface.get_alignment = [](ggml_backend_buffer_type_t) { return size_t(128); };
    b.iface.get_alloc_size = buft_size;
    auto & i = d->dev.iface;
    i.get_name = i.get_description = device_name;
    i.get_memory = [](ggml_backend_dev_t, size_t * f, size_t * t) { *f = *t = free_bytes; };
    i.get_type = [](ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; };
    i.get_props = describe;
    i.init_backend = backend_of;
    i.get_buffer_type = [](ggml_backend_dev_t x) { return &((Device *) x->context)->buft; };
    i.get_host_buffer_type = [](ggml_backend_dev_t) { return &host_buft; };
    i.supports_op = device_supports;
    i.supports_buft = [](ggml_backend_dev_t x, ggml_backend_buffer_type_t t) { return is_ours(t) && t->device == x; };
    i.offload_op = device_takes_over;
    i.event_new = [](ggml_backend_dev_t x) { return new ggml_backend_event{x, nullptr}; };
    i.event_free = [](ggml_backend_dev_t, ggml_backend_event_t e) { delete e; };
    i.event_synchronize = [](ggml_backend_dev_t, ggml_backend_event_t) {};
    d->dev.context = d;
    d->dev.reg = &registry;
    devices.push_back(d);
}

static void add_devices(int n) {
    host_buft = *ggml_backend_cpu_buffer_type();
    host_buft.iface.get_name = [](ggml_backend_buffer_type_t) { return "CUDA_Host"; };
    for (int i = 0; i < n; i++) add_device(i);
    registry = {};
    registry.api_version = GGML_BACKEND_API_VERSION;
    registry.iface.get_name = [](ggml_backend_reg_t) { return "CUDA"; };
    registry.iface.get_device_count = [](ggml_backend_reg_t) { return devices.size(); };
    registry.iface.get_device = [](ggml_backend_reg_t, size_t i) { return &devices[i]->dev; };
    registry.iface.get_proc_address = [](ggml_backend_reg_t, const char *) { return (void *) nullptr; };
    if (!n) return;
    host_buft.device = &devices[0]->dev;
    ggml_backend_register(&registry);
}

// ---- one request a line ----

using Options = std::map<std::string, std::string>;

static std::vector<std::string> parts(const std::string & text, char by) {
    std::vector<std::string> found;
    std::istringstream in(text);
    for (std::string part; std::getline(in, part, by);) found.push_back(part);
    return found;
}

static int number(const Options & o, const char * key, int otherwise) {
    auto at = o.find(key);
    return at == o.end() || at->second.empty() ? otherwise : atoi(at->second.c_str());
}

static ggml_type type_of(const Options & o, const char * key) {
    auto at = o.find(key);
    for (int t = 0; t < GGML_TYPE_COUNT; t++) {
        if (at != o.end() && ggml_type_name((ggml_type) t) && !strcasecmp(ggml_type_name((ggml_type) t), at->second.c_str())) return (ggml_type) t;
    }
    return GGML_TYPE_F16;
}

static llama_model * load(const std::string & path, const Options & o) {
    auto how = llama_model_default_params();
    how.no_alloc = true;
    how.lazy_mode = LLAMA_LAZY_MODE_OFF;
    how.load_mode = LLAMA_LOAD_MODE_NONE;
    how.n_gpu_layers = devices.empty() ? 0 : number(o, "ngl", -1);
    std::vector<float> split(128, 0.0f);
    if (o.count("ts") && !o.at("ts").empty()) {
        auto shares = parts(o.at("ts"), ',');
        for (size_t i = 0; i < shares.size(); i++) split[i] = std::stof(shares[i]);
        how.tensor_split = split.data();
    }
    std::list<std::string> patterns;
    std::vector<llama_model_tensor_buft_override> moved;
    if (o.count("ot")) {
        for (const auto & one : parts(o.at("ot"), ',')) {
            auto at = one.find('=');
            patterns.push_back(one.substr(0, at));
            auto buft = ggml_backend_cpu_buffer_type();
            for (auto * d : devices) if (d->name == one.substr(at + 1)) buft = &d->buft;
            moved.push_back({patterns.back().c_str(), buft});
        }
    }
    for (int i = 0; i < number(o, "ncmoe", 0); i++) {
        patterns.push_back("blk\\." + std::to_string(i) + "\\.ffn_(up|down|gate|gate_up)_(ch|)exps");
        moved.push_back({patterns.back().c_str(), ggml_backend_cpu_buffer_type()});
    }
    moved.push_back({nullptr, nullptr});
    if (moved.size() > 1) how.tensor_buft_overrides = moved.data();
    return llama_model_load_from_file(path.c_str(), how);
}

static void print_sizes(const llama_context * ctx, const std::map<std::string, size_t> & adapters) {
    printf("{");
    for (const auto & [name, size] : adapters) printf("\"lora %s\": %zu, ", name.c_str(), size);
    bool first = true;
    for (const auto & [buft, size] : llama_get_memory_breakdown(ctx)) {
        printf("%s\"%s\": [%zu, %zu, %zu]", first ? "" : ", ", ggml_backend_buft_name(buft), size.model, size.context, size.compute);
        first = false;
    }
    puts("}");
}

static llama_context_params context_params(const Options & o) {
    auto how = llama_context_default_params();
    how.n_ctx = number(o, "n_ctx", 4096);
    how.n_batch = number(o, "n_batch", 2048);
    how.n_ubatch = number(o, "n_ubatch", 512);
    how.n_seq_max = number(o, "n_seq", 1);
    how.n_outputs_max = number(o, "n_out", 0);
    how.kv_unified = number(o, "uni", 0);
    how.swa_full = number(o, "swa", 0);
    how.flash_attn_type = number(o, "fa", 1) ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    how.type_k = type_of(o, "k");
    how.type_v = type_of(o, "v");
    how.op_offload = number(o, "opoff", 1);
    how.offload_kqv = number(o, "kqv", 1);
    return how;
}

static const char * answer(llama_model * model, const Options & o) {
    auto how = context_params(o);
    kept = nullptr;
    auto * ctx = llama_init_from_model(model, how);
    if (!ctx) return "context";
    std::map<std::string, size_t> sizes;
    std::vector<llama_adapter_lora *> adapters;
    if (o.count("lora")) {
        for (const auto & path : parts(o.at("lora"), ',')) {
            auto * adapter = llama_adapter_lora_init(model, path.c_str());
            if (!adapter) return "adapter";
            for (const auto & buffer : adapter->bufs) sizes[ggml_backend_buffer_name(buffer.get())] += ggml_backend_buffer_get_size(buffer.get());
            adapters.push_back(adapter);
        }
        std::vector<float> scales(adapters.size(), 1.0f);
        kept = nullptr;
        llama_set_adapters_lora(ctx, adapters.data(), adapters.size(), scales.data());
        ctx->sched_reserve();
    }
    print_sizes(ctx, sizes);
    llama_free(ctx);
    for (auto * adapter : adapters) llama_adapter_lora_free(adapter);
    return nullptr;
}

#ifdef WITH_FIT
bool tty_can_use_colors() { return false; }  // of common/console.cpp, for log.cpp

static void fit(const std::string & path, const Options & o) {
    mending = false;
    free_bytes = strtoull(o.at("free").c_str(), nullptr, 10);
    auto model = llama_model_default_params();
    model.lazy_mode = LLAMA_LAZY_MODE_OFF;
    auto context = context_params(o);
    std::vector<float> split(llama_max_devices(), 0.0f);
    std::vector<llama_model_tensor_buft_override> moved(llama_max_tensor_buft_overrides(), {nullptr, nullptr});
    std::vector<size_t> margins(llama_max_devices(), size_t(number(o, "target", 1024)) << 20);
    auto status = common_fit_params(path.c_str(), &model, &context, split.data(), moved.data(), margins.data(), number(o, "ctx_min", 4096), nullptr, GGML_LOG_LEVEL_ERROR);
    printf("{\"status\": %d, \"n_ctx\": %u, \"ngl\": %d, \"split\": [", (int) status, context.n_ctx, model.n_gpu_layers);
    for (size_t i = 0; i < devices.size(); i++) printf("%s%g", i ? ", " : "", split[i]);
    printf("], \"ot\": \"");
    for (size_t i = 0; moved[i].pattern; i++) {
        std::string text = moved[i].pattern;
        for (size_t at = 0; (at = text.find('\\', at)) != std::string::npos; at += 2) text.insert(at, "\\");
        printf("%s%s=%s", i ? "," : "", text.c_str(), ggml_backend_buft_name(moved[i].buft));
    }
    puts("\"}");
    free_bytes = size_t(1) << 40;
    mending = true;
}
#endif

int main(int argc, char ** argv) {
    llama_log_set([](ggml_log_level level, const char * text, void *) { if (getenv("LOG") || level >= GGML_LOG_LEVEL_ERROR) fputs(text, stderr); }, nullptr);
    add_devices(argc > 1 ? atoi(argv[1]) : 0);
    llama_backend_init();
    llama_model * model = nullptr;
    std::string loaded;
    for (std::string line; std::getline(std::cin, line);) {
        std::istringstream in(line);
        std::string path, word;
        Options o;
        in >> path;
        while (in >> word) o[word.substr(0, word.find('='))] = word.substr(word.find('=') + 1);
        std::string key = path + "|" + o["ngl"] + "|" + o["ts"] + "|" + o["ncmoe"] + "|" + o["ot"];
#ifdef WITH_FIT
        if (o.count("fit")) {
            fit(path, o);
            fflush(stdout);
            continue;
        }
#endif
        if (o["ot"].empty()) o.erase("ot");
        if (o["lora"].empty()) o.erase("lora");
        if (key != loaded || !model) {
            if (model) llama_model_free(model);
            model = load(path, o);
            loaded = key;
        }
        const char * failed = model ? answer(model, o) : "model";
        if (failed) printf("{\"error\": \"%s\"}\n", failed);
        fflush(stdout);
    }
}
