// attention_paged on a GPU's arrays, and what flash_attn_with_kvcache does beside it there.
#include "bind/cuda_attention.h"
#include "bind/device_cache.h"

namespace qkv {
namespace {

// The integers of one call.
struct Sequences {
  int64_t batch = 0, queries = 0;  // queries: of each, unless cu_q is there
  DeviceInts cu_q, lengths, cu_k, starts, tables;
  bool packed = false, starting = false;
  int64_t more_keys = 0;

  int64_t queries_of(size_t i) const { return packed ? cu_q.host[i + 1] - cu_q.host[i] : queries; }
  int64_t start_of(size_t i) const { return starting ? starts.host[i] : 0; }
  int64_t width() const { return tables.shape[1]; }
  bool lengths_on_host() const { return lengths.on_host && (!starting || starts.on_host); }

  // What the host can know, in the CPU's words; the kernels clamp the rest. Also the places that keys may have.
  int64_t check(const cuda::AttentionArgs& a) const {
    int64_t most = places_of(width(), a.block_size);
    if (!lengths_on_host()) return most;
    int64_t last = 0;
    for (size_t i = 0; i < static_cast<size_t>(batch); ++i) {
      const int64_t start = start_of(i), t = lengths.host[i] + more_keys - start;
      check_sequence(start, t, width(), a.block_size);
      last = std::max(last, start + t);
      if (!tables.on_host || (packed && !cu_q.on_host)) continue;
      const SeenBlocks seen = seen_blocks(a, queries_of(i), t, start);
      for (int64_t n = seen.first; n < seen.end; ++n)
        check_block(tables.host[i * static_cast<size_t>(width()) + static_cast<size_t>(n)], i, a.blocks);
    }
    return last;
  }

  // Shapes of the probabilities, for which the host must wait if they are on the device.
  void fetch(const char* op, const cuda::AttentionArgs& a, cuda::Stream stream, std::vector<int64_t>* s,
             std::vector<int64_t>* t) {
    fetch_ints(&lengths, stream);
    if (packed && !cu_q.on_host) {
      fetch_ints(&cu_q, stream);
      check_cu_seqlens(op, "cu_seqlens_q", cu_q.host, cu_q.shape, a.s);
    }
    for (size_t i = 0; i < static_cast<size_t>(batch); ++i) {
      s->push_back(queries_of(i));
      t->push_back(std::min(std::max<int64_t>(lengths.host[i], 0), a.t));
    }
  }
};

// cu_seqlens_q: integers (B + 1), or how many queries each sequence has. With `starts`, key 0 of sequence b is at place starts[b]
// of its blocks, kv_lengths + more_keys count from place 0, and blocks may have any size; cu_seqlens_k may stand for kv_lengths.
// `check_only`: the caller writes into the caches next, and wants to hear of mistakes before.
py::object attention_paged(py::handle q_in, py::handle k_in, py::handle v_in, py::handle tables_in, py::handle kv_lengths_in,
                           py::handle cu_q_in, py::handle k_scale_in, py::handle v_scale_in, const py::object& causal,
                           py::handle relative_bias, py::handle alibi, const py::object& scale, const py::object& softcap,
                           const py::object& left, const py::object& right, py::handle sinks, bool return_lse,
                           bool return_weights, py::handle out_in, std::uintptr_t stream, py::handle cu_k_in,
                           py::handle starts_in, int64_t more_keys, bool any_block_size, bool check_only) {
  const char* op = "attention_paged";
  DeviceView q = read_device_array(op, "q", q_in), k = read_device_cache(op, "k_cache", k_in),
             v = read_device_cache(op, "v_cache", v_in);
  cuda::AttentionArgs a{};
  check_paged(op, q, k, v, any_block_size, &a);
  a.blocks = k.shape[0];
  a.stored = stored_of(k);
  DeviceView k_scale = read_device_scale(op, "k_scale", k_scale_in, k), v_scale = read_device_scale(op, "v_scale", v_scale_in, v);
  DeviceCall call(op, reinterpret_cast<cuda::Stream>(stream), q.array);
  for (const DeviceView* x : {&q, &k, &v, &k_scale, &v_scale}) call.reads(*x);

  Sequences of;
  const int64_t total = q.shape[0];
  of.packed = !cu_q_in.is_none() && !py::isinstance<py::int_>(cu_q_in);
  of.more_keys = more_keys;
  of.tables = read_device_ints(&call, "block_tables", tables_in, true);
  if (of.packed) {
    of.cu_q = read_device_ints(&call, "cu_seqlens_q", cu_q_in);
    if (of.cu_q.on_host) {
      check_cu_seqlens(op, "cu_seqlens_q", of.cu_q.host, of.cu_q.shape, total);
      for (size_t i = 0; i + 1 < of.cu_q.host.size(); ++i) a.most_s = std::max(a.most_s, of.queries_of(i));
    } else if (of.cu_q.shape.size() != 1 || of.cu_q.shape[0] < 1) {
      fail_value(std::string(op) + ": cu_seqlens_q must be (B + 1,), got " + shape_text(of.cu_q.shape));
    }
    of.batch = of.cu_q.shape[0] - 1;
    a.s = total;
    a.cu_q = of.cu_q.ints;
  } else {
    a.s = of.queries = cu_q_in.is_none() ? 1 : cu_q_in.cast<int64_t>();
    of.batch = of.queries > 0 ? total / of.queries : of.tables.shape.empty() ? 0 : of.tables.shape[0];
  }
  if (cu_k_in.is_none()) {
    of.lengths = read_device_ints(&call, "kv_lengths", kv_lengths_in);
    check_per_sequence(op, "kv_lengths", of.lengths.shape, of.batch);
    a.kv_lengths = of.lengths.ints;
  } else {
    of.cu_k = read_device_ints(&call, "cu_seqlens_k", cu_k_in);
    check_per_sequence(op, "cu_seqlens_k", of.cu_k.shape, of.batch + 1);
    a.cu_k = of.cu_k.ints;
  }
  of.starting = !starts_in.is_none();
  if (of.starting) {
    of.starts = read_device_ints(&call, "starts", starts_in);
    check_per_sequence(op, "starts", of.starts.shape, of.batch);
    a.starts = of.starts.ints;
  }
  a.more_keys = more_keys;
  check_tables(op, of.tables.shape, of.batch);
  a.block_tables = of.tables.ints;
  a.table_row = of.tables.array.strides[0];
  a.causal = causal_of(op, causal);
  read_window(op, left, right, &a);
  DeviceOptions o;
  read_common(&call, q, relative_bias, alibi, sinks, scale, softcap, of.batch, &o, &a);
  a.t = of.check(a);
  const Shape out_shape = {total, a.heads, a.dv};
  checked_size(op, out_shape);
  if (check_only) return py::none();

  DeviceOutput out(&call, out_in, q, out_shape, {&q, &k, &v, &k_scale, &v_scale, &o.relative_bias, &o.alibi, &o.sinks});
  py::object lse = py::none(), weights = py::none();
  if (return_lse) {
    const DeviceArray made = call.make(py::dtype::of<float>(), {a.heads, total});
    a.lse = reinterpret_cast<float*>(made.data);
    a.lse_b = of.packed ? 0 : of.queries;
    a.lse_h = total;
    lse = py::cast(made);
  }
  DeviceArray weight_starts;
  if (return_weights) {
    std::vector<int64_t> s, t;
    of.fetch(op, a, call.stream(), &s, &t);
    weights = make_weights(&call, q.array.dtype, s, t, &weight_starts, &a);
  }
  if (total * a.heads > 0) {
    q = adjacent(&call, q);
    k = adjacent(&call, k);
    v = adjacent(&call, v);
    const auto strided = [&](const DeviceView& x) {
      return Strided4{x.data, x.dtype, of.packed ? 0 : of.queries * x.strides[0], x.strides[1], x.strides[0], 1};
    };
    const auto cache = [](const DeviceView& x) { return Strided4{x.data, x.dtype, x.strides[0], x.strides[2], x.strides[1], 1}; };
    a.q = strided(q);
    a.k = cache(k);
    a.v = cache(v);
    if (k_scale) a.k_scale = cache(k_scale);
    if (v_scale) a.v_scale = cache(v_scale);
    a.out = strided(out.view());
    run_attention(&call, a);
  }
  return results(py::cast(out.finish()), lse, weights);
}

// Slots (B * count,) of tokens lengths[b] ... + count - 1, for paged_write.
DeviceArray paged_slots(py::handle lengths_in, py::handle tables_in, int64_t count, int64_t block_size, int64_t blocks,
                        const DeviceArray& cache, std::uintptr_t stream) {
  const char* op = "flash_attn_with_kvcache";
  DeviceCall call(op, reinterpret_cast<cuda::Stream>(stream), cache);
  const DeviceInts lengths = read_device_ints(&call, "cache_seqlens", lengths_in);
  const DeviceInts tables = read_device_ints(&call, "block_table", tables_in, true);
  const int64_t batch = lengths.shape[0];
  const DeviceArray slots = call.make(py::dtype::of<int64_t>(), {batch * count});
  const Unlocked unlocked;
  cuda::paged_slots({batch, count, lengths.ints, tables.ints, tables.array.strides[0], tables.shape[1], blocks, block_size,
                     reinterpret_cast<int64_t*>(slots.data)},
                    call.stream());
  return slots;
}

// x (B, S, H, D) turned by tables (positions, half) whose shapes qkv.compat has checked.
DeviceArray rotary_table(py::handle x_in, py::handle cos_in, py::handle sin_in, py::handle lengths_in, bool moves,
                         bool interleaved, std::uintptr_t stream) {
  const char* op = "flash_attn_with_kvcache";
  DeviceView x = read_device_array(op, "q", x_in), cos = read_device_array(op, "rotary_cos", cos_in),
             sin = read_device_array(op, "rotary_sin", sin_in);
  DeviceCall call(op, reinterpret_cast<cuda::Stream>(stream), x.array);
  for (const DeviceView* p : {&x, &cos, &sin}) call.reads(*p);
  const DeviceInts lengths = read_device_ints(&call, "cache_seqlens", lengths_in);
  const DeviceArray y = call.make(x.array.dtype, x.shape);
  const auto table = [](const DeviceView& t) { return Strided4{t.data, t.dtype, 0, 0, t.strides[0], t.strides[1]}; };
  const cuda::RotaryTableArgs args{{x.data, x.dtype, x.strides[0], x.strides[2], x.strides[1], x.strides[3]},
                                   x.shape[0],
                                   x.shape[1],
                                   x.shape[2],
                                   x.shape[3],
                                   table(cos),
                                   table(sin),
                                   cos.shape[0],
                                   cos.shape[1],
                                   lengths.ints,
                                   moves,
                                   interleaved,
                                   y.data};
  const Unlocked unlocked;
  cuda::rotary_table(args, call.stream());
  return y;
}

// TypeError unless all are on the device, of one dtype.
void check_arrays(const std::string& op, const py::dict& named) {
  std::vector<DeviceView> arrays;
  for (const auto& item : named)
    arrays.push_back(read_device_array(op.c_str(), item.first.cast<std::string>().c_str(), item.second));
  std::vector<const View*> pointers;
  for (const DeviceView& x : arrays) pointers.push_back(&x);
  check_dtypes(op.c_str(), pointers);
}

}  // namespace

void bind_cuda_attention_paged(py::module_& m) {
  m.def("attention_paged", attention_paged, py::arg("q"), py::arg("k_cache"), py::arg("v_cache"), py::arg("block_tables"),
        py::arg("kv_lengths"), py::arg("cu_seqlens_q"), py::arg("k_scale"), py::arg("v_scale"), py::arg("causal"),
        py::arg("relative_bias"), py::arg("alibi_slopes"), py::arg("scale"), py::arg("softcap"), py::arg("window_left"),
        py::arg("window_right"), py::arg("sinks"), py::arg("return_lse"), py::arg("return_weights"), py::arg("out"),
        py::arg("stream"), py::arg("cu_seqlens_k") = py::none(), py::arg("starts") = py::none(), py::arg("more_keys") = 0,
        py::arg("any_block_size") = false, py::arg("check_only") = false);
  m.def("paged_slots", paged_slots, py::arg("lengths"), py::arg("tables"), py::arg("count"), py::arg("block_size"),
        py::arg("blocks"), py::arg("cache"), py::arg("stream"));
  m.def("rotary_table", rotary_table, py::arg("x"), py::arg("cos"), py::arg("sin"), py::arg("lengths"), py::arg("moves"),
        py::arg("interleaved"), py::arg("stream"));
  m.def("check_arrays", check_arrays, py::arg("op"), py::arg("arrays"));
}

}  // namespace qkv
