// paged_write.
#include <algorithm>
#include <memory>
#include <numeric>

#include "bind/array.h"
#include "bind/bind.h"
#include "bind/recording.h"
#include "core/parallel.h"
#include "cpu/dispatch.h"

namespace qkv {
namespace {

// Of tokens with the same slot the last one stays: the others are not stored.
void drop_overwritten(std::vector<int64_t>* slots) {
  std::vector<int64_t>& s = *slots;
  int64_t last = -1;
  bool rises = true;
  for (const int64_t slot : s) {
    rises = rises && (slot < 0 || slot > last);
    if (slot >= 0) last = slot;
  }
  if (rises) return;  // the usual case
  std::vector<size_t> order(s.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t x, size_t y) { return s[x] != s[y] ? s[x] < s[y] : x < y; });
  for (size_t i = 0; i + 1 < order.size(); ++i)
    if (s[order[i]] == s[order[i + 1]]) s[order[i]] = -1;
}

void check_slots(const std::vector<int64_t>& slots, int64_t places) {
  for (const int64_t slot : slots)
    if (slot >= places)
      fail_value("paged_write: slots must be below " + std::to_string(places) + ", got " + std::to_string(slot));
}

void run(PagedWriteArgs a, std::vector<int64_t>* slots) {
  drop_overwritten(slots);
  a.slots = slots->data();
  a.threads = num_threads();
  const Scratch scratch(static_cast<size_t>(std::max(a.d, a.dv) * a.threads) * sizeof(float));
  a.scratch = scratch.as<float>();
  kernels().paged_write(a);
}

bool paged_write(py::handle k_in, py::handle v_in, py::handle k_cache_in, py::handle v_cache_in, py::handle slots_in,
                 py::handle k_scale_in, py::handle v_scale_in) {
  const char* op = "paged_write";
  Array k = read_array(op, "k", k_in), v = read_array(op, "v", v_in);
  const Array k_cache = read_cache(op, "k_cache", k_cache_in, true), v_cache = read_cache(op, "v_cache", v_cache_in, true);
  bool serve_double = check_dtypes(op, {&k, &v}) || k_cache.is_double || v_cache.is_double;
  check_cache_dtypes(k_cache, v_cache);
  for (const Array* x : {&k, &v})
    if (x->rank() != 3) fail_value(x->where + " must be (tokens, Hkv, D), got shape " + shape_text(x->shape));
  for (const Array* x : {&k_cache, &v_cache})
    if (x->rank() != 4) fail_value(x->where + " must be (blocks, block_size, Hkv, D), got shape " + shape_text(x->shape));
  PagedWriteArgs a{};
  a.tokens = k.shape[0];
  a.heads = k.shape[1];
  a.d = k.shape[2];
  a.dv = v.shape[2];
  a.block_size = k_cache.shape[1];
  if (v.shape[0] != a.tokens || v.shape[1] != a.heads)
    fail_value(v.where + " has " + std::to_string(v.shape[0]) + " tokens of " + std::to_string(v.shape[1]) + " heads, k has " +
               std::to_string(a.tokens) + " of " + std::to_string(a.heads));
  const std::vector<int64_t> k_shape = {k_cache.shape[0], a.block_size, a.heads, a.d};
  const std::vector<int64_t> v_shape = {k_cache.shape[0], a.block_size, a.heads, a.dv};
  if (k_cache.shape != k_shape)
    fail_value(k_cache.where + " must be " + shape_text(k_shape) + ", got " + shape_text(k_cache.shape));
  if (v_cache.shape != v_shape)
    fail_value(v_cache.where + " must be " + shape_text(v_shape) + ", got " + shape_text(v_cache.shape));
  const Array k_scale = read_scale(op, "k_scale", k_scale_in, k_cache, true);
  const Array v_scale = read_scale(op, "v_scale", v_scale_in, v_cache, true);
  std::vector<int64_t> shape, slots = read_ints(op, "slots", slots_in, &shape);
  const LiveInts live_slots(slots_in);
  if (shape != std::vector<int64_t>{a.tokens})
    fail_value("paged_write: slots must be " + shape_text({a.tokens}) + ", got " + shape_text(shape));
  if (py::reinterpret_borrow<py::array>(slots_in).dtype().kind() == 'u' &&
      std::any_of(slots.begin(), slots.end(), [](int64_t slot) { return slot < 0; }))
    fail_value("paged_write: slots holds a number beyond 2^63");
  const int64_t places = checked_size(op, {k_cache.shape[0], a.block_size});
  check_slots(slots, places);
  if (serve_double) return false;
  if (k.size() + v.size() == 0) return true;

  // What is stored must not change under the reader's eyes.
  for (Array* x : {&k, &v})
    for (const Array* y : {&k_cache, &v_cache, &k_scale, &v_scale})
      if (*y && overlap(*x, *y)) {
        unrecorded();
        *x = view_of(py::array(x->owner.attr("copy")()), x->dtype);
      }
  const auto rows = [](const Array& x) { return Strided4{x.data, x.dtype, 0, x.strides[1], x.strides[0], x.strides[2]}; };
  const auto cache = [](const Array& x) {
    return Strided4{x.data, x.dtype, x.strides[0], x.strides[2], x.strides[1], x.rank() == 4 ? x.strides[3] : 0};
  };
  a.k = rows(k);
  a.v = rows(v);
  a.k_cache = cache(k_cache);
  a.v_cache = cache(v_cache);
  if (k_scale) a.k_scale = cache(k_scale);
  if (v_scale) a.v_scale = cache(v_scale);
  launch([&] { run(a, &slots); },
         [a, live_slots, places, now = std::make_shared<std::vector<int64_t>>(slots)] {
           live_slots.read(now.get());
           check_slots(*now, places);
           run(a, now.get());
         });
  return true;
}

// The first `filled` places of blocks from[i] to blocks to[i], all different, in arrays (blocks, block_size, ...) of one cache.
void copy_blocks(const py::list& arrays, py::handle from_in, py::handle to_in, int64_t filled) {
  const char* op = "copy_blocks";
  std::vector<int64_t> shape, shape_to;
  const std::vector<int64_t> from = read_ints(op, "from", from_in, &shape), to = read_ints(op, "to", to_in, &shape_to);
  if (shape != shape_to) fail_value("copy_blocks: from and to must have one shape");
  std::vector<char*> data;
  std::vector<int64_t> block, copied;
  for (const py::handle item : arrays) {
    if (!py::isinstance<py::array>(item)) fail_type("copy_blocks: arrays must hold arrays");
    py::array x = py::reinterpret_borrow<py::array>(item);
    if (x.ndim() < 2 || !(x.flags() & py::array::c_style) || !x.writeable())
      fail_value("copy_blocks: arrays must be writeable and contiguous, (blocks, block_size, ...)");
    if (filled < 0 || filled > x.shape(1)) fail_value("copy_blocks: filled must lie in 0 to the block size");
    for (const std::vector<int64_t>* blocks : {&from, &to})
      for (const int64_t b : *blocks)
        if (b < 0 || b >= x.shape(0)) fail_value("copy_blocks: there is no block " + std::to_string(b));
    const int64_t bytes = x.shape(0) ? x.nbytes() / x.shape(0) : 0;
    data.push_back(static_cast<char*>(x.mutable_data()));
    block.push_back(bytes);
    copied.push_back(x.shape(1) ? bytes / x.shape(1) * filled : 0);
  }
  if (data.empty() || from.empty()) return;
  const UnlockedOnce unlocked;
  kernels().copy_blocks({data.data(), block.data(), copied.data(), static_cast<int64_t>(data.size()), from.data(), to.data(),
                         static_cast<int64_t>(from.size()), num_threads()});
}

}  // namespace

void bind_paged_write(py::module_& m) {
  m.def("copy_blocks", copy_blocks, py::arg("arrays"), py::arg("from_"), py::arg("to"), py::arg("filled"));
  m.def("paged_write", paged_write, py::arg("k"), py::arg("v"), py::arg("k_cache"), py::arg("v_cache"), py::arg("slots"),
        py::arg("k_scale"), py::arg("v_scale"));
}

}  // namespace qkv
