// attention, attention_varlen, attention_paged, additive_attention.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>

#include "bind/array.h"
#include "bind/attention_checks.h"
#include "bind/bind.h"
#include "bind/int_checks.h"
#include "bind/paged_checks.h"
#include "bind/recording.h"
#include "core/parallel.h"
#include "cpu/dispatch.h"

namespace qkv {
namespace {

// What both attention functions share. Python hands over keyword arguments by name; see qkv.ops for their meaning.
struct Options {
  Array relative_bias, alibi, sinks;
  std::vector<std::vector<float>> keep;
};

// scale, softcap, relative_bias, alibi_slopes, sinks: checked and stored. True if one of them is float64.
bool read_common(const char* op, const Array& q, const py::object& relative_bias, const py::object& alibi,
                 const py::object& sinks, const py::object& scale, const py::object& softcap, int64_t batch, Options* o,
                 AttentionArgs* a) {
  a->batch = batch;
  read_scale(op, scale, softcap, a);
  o->relative_bias = read_optional(op, "relative_bias", relative_bias);
  o->alibi = read_optional(op, "alibi_slopes", alibi);
  o->sinks = read_optional(op, "sinks", sinks);
  const Array &r = o->relative_bias, &s = o->alibi;
  check_score_parameters(op, q, r, s, o->sinks, a);
  const bool serve_double = r.is_double || s.is_double || o->sinks.is_double;
  a->relative_bias = as_floats(r, &o->keep);
  a->alibi = as_floats(s, &o->keep);
  a->sinks = as_floats(o->sinks, &o->keep);
  return serve_double;
}

// Tiles, scratch and the call itself. `rows` of batch entry b: rows[b].
void run(AttentionArgs* a, const std::vector<int64_t>& rows) {
  a->threads = num_threads();
  int64_t all = 0, longest = 0;
  for (const int64_t r : rows) {
    all += r;
    longest = std::max(longest, r);
  }
  a->plan = plan_attention(*a, all * a->kv_heads, longest);
  std::vector<int64_t> tiles(rows.size() + 1, 0);
  for (size_t b = 0; b < rows.size(); ++b) tiles[b + 1] = tiles[b] + (rows[b] + a->plan.tile_rows - 1) / a->plan.tile_rows;
  a->tiles = tiles.data();
  const int64_t part_bytes = tiles.back() * a->kv_heads * a->plan.splits * a->plan.part_bytes;
  const Scratch scratch(static_cast<size_t>(a->plan.scratch_bytes * a->threads + part_bytes));
  a->scratch = scratch.as<char>();
  kernels().attention(*a);
}

py::object attention(py::handle q_in, py::handle k_in, py::handle v_in, const py::object& causal, py::handle mask_in,
                     py::handle bias_in, const py::object& relative_bias, const py::object& alibi, const py::object& scale,
                     const py::object& softcap, const py::object& left, const py::object& right, const py::object& sinks,
                     py::handle kv_lengths_in, bool bshd, bool return_lse, bool return_weights, py::handle out_in, bool bf16) {
  const char* op = "attention";
  const Array q = read_array(op, "q", q_in), k = read_array(op, "k", k_in), v = read_array(op, "v", v_in);
  bool serve_double = check_dtypes(op, {&q, &k, &v});
  check_dense(q, k, v, bshd);
  AttentionArgs a{};
  a.bf16 = bf16;
  const size_t h = bshd ? 2 : 1, s = bshd ? 1 : 2;
  check_heads(op, q, k, v, h, s, &a);
  const int64_t batch = q.shape[0];
  a.s = q.shape[s];
  a.t = k.shape[s];
  a.causal = causal_of(op, causal);
  read_window(op, left, right, &a);
  Options o;
  serve_double = read_common(op, q, relative_bias, alibi, sinks, scale, softcap, batch, &o, &a) || serve_double;

  const Shape scores = {batch, a.heads, a.s, a.t};
  Array bias = read_optional(op, "bias", bias_in);
  check_parameter_dtype(q, bias);
  serve_double = serve_double || (bias && bias.is_double);
  if (bias) bias = broadcast(bias, scores);
  Array mask;
  if (!mask_in.is_none()) {
    if (!py::isinstance<py::array>(mask_in) || py::reinterpret_borrow<py::array>(mask_in).dtype().kind() != 'b')
      fail_type("attention: mask must be a bool array (True: attend), got " +
                (py::isinstance<py::array>(mask_in)
                     ? py::str(py::reinterpret_borrow<py::array>(mask_in).dtype()).cast<std::string>()
                     : std::string(Py_TYPE(mask_in.ptr())->tp_name)));
    const py::array mask_owner = py::reinterpret_borrow<py::array>(mask_in);
    mask.owner = mask_owner;
    mask.where = "attention: mask";
    mask.data = static_cast<char*>(const_cast<void*>(mask_owner.data()));
    for (py::ssize_t d = 0; d < mask_owner.ndim(); ++d) {
      mask.shape.push_back(mask_owner.shape(d));
      mask.strides.push_back(mask_owner.strides(d));
    }
    mask = broadcast(mask, scores);
    a.mask = {mask.data, DType::f32, mask.strides[0], mask.strides[1], mask.strides[2], mask.strides[3]};
  }
  std::vector<int64_t> kv_lengths;
  if (!kv_lengths_in.is_none()) {
    Shape shape;
    kv_lengths = read_ints(op, "kv_lengths", kv_lengths_in, &shape);
    check_kv_lengths(op, kv_lengths, shape, batch, a.t);
    a.kv_lengths = kv_lengths.data();
  }
  Shape out_shape = q.shape;
  out_shape[3] = a.dv;
  checked_size(op, out_shape);
  if (return_weights) checked_size(op, scores);
  if (serve_double) return py::none();

  Output out(op, out_in, q, out_shape, {&q, &k, &v, &bias, &mask, &o.relative_bias, &o.alibi, &o.sinks});
  py::object lse = py::none(), weights = py::none();
  if (return_lse) {
    const py::array made = new_array(op, float32_dtype(), {batch, a.heads, a.s});
    a.lse = static_cast<float*>(const_cast<void*>(made.data()));
    lse = made;
  }
  std::vector<char*> weight_rows;
  if (return_weights) {
    const py::array made = new_array(op, q.owner.dtype(), scores);
    char* data = static_cast<char*>(const_cast<void*>(made.data()));
    for (int64_t b = 0; b < batch; ++b) weight_rows.push_back(data + b * a.heads * a.s * a.t * size_of(q.dtype));
    a.weights = weight_rows.data();
    weights = made;
  }
  if (batch * a.heads * a.s > 0) {
    const auto strided = [&](const Array& x) {
      return Strided4{x.data, x.dtype, x.strides[0], x.strides[h], x.strides[s], x.strides[3]};
    };
    a.q = strided(q);
    a.k = strided(k);
    a.v = strided(v);
    a.out = strided(out.view());
    if (bias) a.bias = {bias.data, bias.dtype, bias.strides[0], bias.strides[1], bias.strides[2], bias.strides[3]};
    a.lse_b = a.heads * a.s;
    a.lse_h = a.s;
    a.longest_k = a.t;
    const UnlockedOnce unlocked;
    run(&a, std::vector<int64_t>(static_cast<size_t>(batch), a.s * (a.heads / a.kv_heads)));
  }
  return results(out.finish(), lse, weights);
}

std::vector<int64_t> read_cu_seqlens(const char* op, const char* name, py::handle object, int64_t total) {
  Shape shape;
  std::vector<int64_t> cu = read_ints(op, name, object, &shape);
  check_cu_seqlens(op, name, cu, shape, total);
  return cu;
}

py::object attention_varlen(py::handle q_in, py::handle k_in, py::handle v_in, py::handle cu_q_in, py::handle cu_k_in,
                            const py::object& causal, const py::object& relative_bias, const py::object& alibi,
                            const py::object& scale, const py::object& softcap, const py::object& left, const py::object& right,
                            const py::object& sinks, bool return_lse, bool return_weights, py::handle out_in, bool bf16) {
  const char* op = "attention_varlen";
  const Array q = read_array(op, "q", q_in), k = read_array(op, "k", k_in), v = read_array(op, "v", v_in);
  bool serve_double = check_dtypes(op, {&q, &k, &v});
  check_packed(q, k, v);
  AttentionArgs a{};
  a.bf16 = bf16;
  check_heads(op, q, k, v, 1, 0, &a);
  const std::vector<int64_t> cu_q = read_cu_seqlens(op, "cu_seqlens_q", cu_q_in, q.shape[0]),
                             cu_k = read_cu_seqlens(op, "cu_seqlens_k", cu_k_in, k.shape[0]);
  if (cu_q.size() != cu_k.size())
    fail_value("attention_varlen: cu_seqlens_q has " + std::to_string(cu_q.size()) + " entries, cu_seqlens_k has " +
               std::to_string(cu_k.size()));
  const int64_t batch = static_cast<int64_t>(cu_q.size()) - 1;
  a.causal = causal_of(op, causal);
  read_window(op, left, right, &a);
  Options o;
  serve_double = read_common(op, q, relative_bias, alibi, sinks, scale, softcap, batch, &o, &a) || serve_double;
  const Shape out_shape = {q.shape[0], a.heads, a.dv};
  checked_size(op, out_shape);
  if (serve_double) return py::none();

  Output out(op, out_in, q, out_shape, {&q, &k, &v, &o.relative_bias, &o.alibi, &o.sinks});
  py::object lse = py::none(), weights = py::none();
  if (return_lse) {
    const py::array made = new_array(op, float32_dtype(), {a.heads, q.shape[0]});
    a.lse = static_cast<float*>(const_cast<void*>(made.data()));
    a.lse_h = q.shape[0];
    lse = made;
  }
  std::vector<char*> weight_rows;
  std::vector<int64_t> rows;
  py::list weight_list;
  for (int64_t b = 0; b < batch; ++b) {
    const auto i = static_cast<size_t>(b);
    const int64_t s = cu_q[i + 1] - cu_q[i], t = cu_k[i + 1] - cu_k[i];
    rows.push_back(a.kv_heads > 0 ? s * (a.heads / a.kv_heads) : 0);
    a.longest_k = std::max(a.longest_k, t);
    if (!return_weights) continue;
    const py::array made = new_array(op, q.owner.dtype(), {a.heads, s, t});
    weight_rows.push_back(static_cast<char*>(const_cast<void*>(made.data())));
    weight_list.append(made);
  }
  if (return_weights) {
    a.weights = weight_rows.data();
    weights = weight_list;
  }
  if (q.shape[0] * a.heads > 0) {
    const auto strided = [](const Array& x) { return Strided4{x.data, x.dtype, 0, x.strides[1], x.strides[0], x.strides[2]}; };
    a.q = strided(q);
    a.k = strided(k);
    a.v = strided(v);
    a.out = strided(out.view());
    a.cu_q = cu_q.data();
    a.cu_k = cu_k.data();
    const UnlockedOnce unlocked;
    run(&a, rows);
  }
  return results(out.finish(), lse, weights);
}

// Integers (B,).
std::vector<int64_t> read_per_sequence(const char* op, const char* name, py::handle object, int64_t batch) {
  Shape shape;
  std::vector<int64_t> x = read_ints(op, name, object, &shape);
  check_per_sequence(op, name, shape, batch);
  return x;
}

// block_tables (B, N), any integers. Only entries that are needed are ever looked at, without the GIL.
class BlockTables {
 public:
  BlockTables() = default;
  BlockTables(const char* op, py::handle object, int64_t batch) {
    const std::string where = std::string(op) + ": block_tables";
    if (!py::isinstance<py::array>(object)) fail_type(where + " must be an integer array, got " + Py_TYPE(object.ptr())->tp_name);
    table_ = py::reinterpret_borrow<py::array>(object);
    const py::dtype type = table_.dtype();
    if (type.kind() != 'i' && type.kind() != 'u')
      fail_type(where + " must hold integers, got " + py::str(type).cast<std::string>());
    check_tables(op, Shape(table_.shape(), table_.shape() + table_.ndim()), batch);
    if (type.byteorder() == (PY_BIG_ENDIAN ? '<' : '>')) {
      unrecorded();
      table_ = py::array_t<int64_t, py::array::forcecast>::ensure(table_);
      if (!table_) throw std::bad_alloc();
    }
    data_ = static_cast<const char*>(table_.data());
    width_ = table_.shape(1);
    row_ = table_.strides(0);
    step_ = table_.strides(1);
    item_ = table_.itemsize();
    is_signed_ = table_.dtype().kind() == 'i';
  }
  int64_t width() const { return width_; }
  int64_t at(int64_t b, int64_t i) const {
    const char* p = data_ + b * row_ + i * step_;
    switch (item_) {
      case 1:
        return is_signed_ ? read<int8_t>(p) : read<uint8_t>(p);
      case 2:
        return is_signed_ ? read<int16_t>(p) : read<uint16_t>(p);
      case 4:
        return is_signed_ ? read<int32_t>(p) : read<uint32_t>(p);
      default:
        return read<int64_t>(p);  // uint64 beyond int64 is negative, and refused
    }
  }

 private:
  template <class T>
  static int64_t read(const char* p) {
    T x;
    std::memcpy(&x, p, sizeof(T));
    return x;
  }
  py::array table_ = no_array();
  const char* data_ = nullptr;
  int64_t width_ = 0, row_ = 0, step_ = 0;  // strides in bytes
  py::ssize_t item_ = 0;
  bool is_signed_ = false;
};

// What attention_paged looks up before its work: the blocks of every sequence, as its lengths and tables are now.
struct PagedCall {
  AttentionArgs a{};
  Options options;
  std::vector<int64_t> cu_q, lengths, starts, blocks, cu_blocks, rows;
  BlockTables tables;
  int64_t cache_blocks = 0;

  // Lengths fit the tables, and the blocks that some query sees are there.
  void look_up() {
    blocks.clear();
    cu_blocks.clear();
    rows.clear();
    a.longest_k = 0;
    for (size_t i = 0; i + 1 < cu_q.size(); ++i) {
      const int64_t t = lengths[i], s = cu_q[i + 1] - cu_q[i], start = starts[i];
      check_sequence(start, t, tables.width(), a.block_size);
      rows.push_back(a.kv_heads > 0 ? s * (a.heads / a.kv_heads) : 0);
      cu_blocks.push_back(static_cast<int64_t>(blocks.size()));
      a.longest_k = std::max(a.longest_k, t);
      const SeenBlocks seen = seen_blocks(a, s, t, start);
      blocks.resize(blocks.size() + static_cast<size_t>(seen.first), 0);  // never looked up
      for (int64_t n = seen.first; n < seen.end; ++n) {
        const int64_t block = tables.at(static_cast<int64_t>(i), n);
        check_block(block, i, cache_blocks);
        blocks.push_back(block);
      }
    }
    blocks.push_back(0);  // a pointer that is not null
  }

  void run() {
    a.cu_q = cu_q.data();
    a.kv_lengths = lengths.data();
    a.blocks = blocks.data();
    a.cu_blocks = cu_blocks.data();
    a.starts = starts.data();
    qkv::run(&a, rows);
  }
};

// With `starts`, key 0 of sequence b is at place starts[b] of its blocks, and blocks may have any size. `check_only`: the caller
// writes into the caches next, and wants to hear of mistakes before.
py::object attention_paged(py::handle q_in, py::handle k_in, py::handle v_in, py::handle tables_in, py::handle kv_lengths_in,
                           py::handle cu_q_in, py::handle k_scale_in, py::handle v_scale_in, py::handle starts_in,
                           const py::object& causal, const py::object& relative_bias, const py::object& alibi,
                           const py::object& scale, const py::object& softcap, const py::object& left, const py::object& right,
                           const py::object& sinks, bool return_lse, bool return_weights, py::handle out_in, bool check_only,
                           bool bf16) {
  const char* op = "attention_paged";
  const Array q = read_array(op, "q", q_in), k = read_cache(op, "k_cache", k_in, false),
              v = read_cache(op, "v_cache", v_in, false);
  const auto call = std::make_shared<PagedCall>();
  AttentionArgs& a = call->a;
  check_paged(op, q, k, v, !starts_in.is_none(), &a);
  bool serve_double = q.is_double || k.is_double || v.is_double;
  a.bf16 = bf16;
  const Array k_scale = read_scale(op, "k_scale", k_scale_in, k, false),
              v_scale = read_scale(op, "v_scale", v_scale_in, v, false);

  std::vector<int64_t>& cu_q = call->cu_q;
  if (cu_q_in.is_none()) {  // one query each
    cu_q.resize(static_cast<size_t>(checked_size(op, {q.shape[0]})) + 1);
    std::iota(cu_q.begin(), cu_q.end(), int64_t{0});
  } else {
    cu_q = read_cu_seqlens(op, "cu_seqlens_q", cu_q_in, q.shape[0]);
  }
  const int64_t batch = static_cast<int64_t>(cu_q.size()) - 1;
  call->lengths = read_per_sequence(op, "kv_lengths", kv_lengths_in, batch);
  const LiveInts live_lengths(kv_lengths_in);
  call->starts = starts_in.is_none() ? std::vector<int64_t>(static_cast<size_t>(batch), 0)
                                     : read_per_sequence(op, "starts", starts_in, batch);
  call->tables = BlockTables(op, tables_in, batch);
  call->cache_blocks = k.shape[0];
  a.causal = causal_of(op, causal);
  read_window(op, left, right, &a);
  Options& o = call->options;
  serve_double = read_common(op, q, relative_bias, alibi, sinks, scale, softcap, batch, &o, &a) || serve_double;
  call->look_up();
  const Shape out_shape = {q.shape[0], a.heads, a.dv};
  checked_size(op, out_shape);
  if (serve_double || check_only) return py::none();

  Output out(op, out_in, q, out_shape, {&q, &k, &v, &k_scale, &v_scale, &o.relative_bias, &o.alibi, &o.sinks});
  py::object lse = py::none(), weights = py::none();
  if (return_lse) {
    const py::array made = new_array(op, float32_dtype(), {a.heads, q.shape[0]});
    a.lse = static_cast<float*>(const_cast<void*>(made.data()));
    a.lse_h = q.shape[0];
    lse = made;
  }
  std::vector<char*> weight_rows;
  if (return_weights) {
    py::list list;
    unrecorded();
    for (size_t b = 0; b < call->lengths.size(); ++b) {
      const py::array made = new_array(op, q.owner.dtype(), {a.heads, cu_q[b + 1] - cu_q[b], call->lengths[b]});
      weight_rows.push_back(static_cast<char*>(const_cast<void*>(made.data())));
      list.append(made);
    }
    a.weights = weight_rows.data();
    weights = list;
  }
  if (q.shape[0] * a.heads > 0) {
    const auto strided = [](const Array& x) { return Strided4{x.data, x.dtype, 0, x.strides[1], x.strides[0], x.strides[2]}; };
    const auto cache = [](const Array& x) {
      return Strided4{x.data, x.dtype, x.strides[0], x.strides[2], x.strides[1], x.strides[3]};
    };
    const auto scales = [](const Array& x) {
      return x ? Strided4{x.data, x.dtype, x.strides[0], x.strides[2], x.strides[1], 0} : Strided4{};
    };
    a.q = strided(q);
    a.k = cache(k);
    a.v = cache(v);
    a.k_scale = scales(k_scale);
    a.v_scale = scales(v_scale);
    a.out = strided(out.view());
    launch([&call] { call->run(); },
           [call, live_lengths] {
             live_lengths.read(&call->lengths);
             call->look_up();
             call->run();
           });
  }
  return results(out.finish(), lse, weights);
}

// q (B, S, A) and k (B, T, A) projected float32, all but B contiguous, w (A,) float32, v (B, T, Dv); made so by qkv.ops.
py::object additive_attention(py::handle q_in, py::handle k_in, py::handle w_in, py::handle v_in, py::handle mask_in,
                              py::handle kv_lengths_in, bool return_weights) {
  const char* op = "additive_attention";
  const Array q = read_array(op, "q", q_in), k = read_array(op, "k", k_in), w = read_array(op, "w_v", w_in),
              v = read_array(op, "v", v_in);
  AdditiveAttentionArgs a{};
  a.batch = q.shape[0];
  a.s = q.shape[1];
  a.t = k.shape[1];
  a.a = q.shape[2];
  a.dv = v.shape[2];
  py::array out = new_array(op, v.owner.dtype(), {a.batch, a.s, a.dv});
  py::object weights = py::none();
  if (return_weights) {
    const py::array made = new_array(op, v.owner.dtype(), {a.batch, a.s, a.t});
    a.weights = static_cast<char*>(const_cast<void*>(made.data()));
    weights = made;
  }
  if (a.batch * a.s > 0) {
    std::vector<int64_t> kv_lengths;
    if (!kv_lengths_in.is_none()) {
      kv_lengths = read_ints(op, "kv_lengths", kv_lengths_in, nullptr);
      a.kv_lengths = kv_lengths.data();
    }
    if (!mask_in.is_none()) {
      const py::array mask = py::reinterpret_borrow<py::array>(mask_in);
      a.mask = {
          static_cast<char*>(const_cast<void*>(mask.data())), DType::f32, mask.strides(0), 0, mask.strides(1), mask.strides(2)};
    }
    std::vector<std::vector<float>> keep;
    a.q = reinterpret_cast<const float*>(q.data);
    a.k = reinterpret_cast<const float*>(k.data);
    a.q_b = q.strides[0];
    a.k_b = k.strides[0];
    a.w = as_floats(w, &keep);
    a.v = {v.data, v.dtype, v.strides[0], 0, v.strides[1], v.strides[2]};
    a.out = {static_cast<char*>(out.mutable_data()), v.dtype, a.s * a.dv, 0, a.dv, 1};
    const UnlockedOnce unlocked;
    a.threads = num_threads();
    a.plan = plan_additive_attention(a);
    const Scratch scratch(static_cast<size_t>(a.plan.scratch_bytes * a.threads));
    a.scratch = scratch.as<char>();
    kernels().additive_attention(a);
  }
  return results(out, py::none(), weights);
}

}  // namespace

void bind_attention(py::module_& m) {
  m.def("attention", attention, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("causal"), py::arg("mask"), py::arg("bias"),
        py::arg("relative_bias"), py::arg("alibi_slopes"), py::arg("scale"), py::arg("softcap"), py::arg("window_left"),
        py::arg("window_right"), py::arg("sinks"), py::arg("kv_lengths"), py::arg("bshd"), py::arg("return_lse"),
        py::arg("return_weights"), py::arg("out"), py::arg("bf16") = false);
  m.def("attention_varlen", attention_varlen, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("cu_seqlens_q"),
        py::arg("cu_seqlens_k"), py::arg("causal"), py::arg("relative_bias"), py::arg("alibi_slopes"), py::arg("scale"),
        py::arg("softcap"), py::arg("window_left"), py::arg("window_right"), py::arg("sinks"), py::arg("return_lse"),
        py::arg("return_weights"), py::arg("out"), py::arg("bf16") = false);
  m.def("attention_paged", attention_paged, py::arg("q"), py::arg("k_cache"), py::arg("v_cache"), py::arg("block_tables"),
        py::arg("kv_lengths"), py::arg("cu_seqlens_q"), py::arg("k_scale"), py::arg("v_scale"), py::arg("starts"),
        py::arg("causal"), py::arg("relative_bias"), py::arg("alibi_slopes"), py::arg("scale"), py::arg("softcap"),
        py::arg("window_left"), py::arg("window_right"), py::arg("sinks"), py::arg("return_lse"), py::arg("return_weights"),
        py::arg("out"), py::arg("check_only"), py::arg("bf16") = false);
  m.def("additive_attention", additive_attention, py::arg("q"), py::arg("k"), py::arg("w"), py::arg("v"), py::arg("mask"),
        py::arg("kv_lengths"), py::arg("return_weights"));
}

}  // namespace qkv
