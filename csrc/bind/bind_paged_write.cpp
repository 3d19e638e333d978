// paged_write.
#include <algorithm>
#include <memory>

#include "bind/array.h"
#include "bind/bind.h"
#include "bind/recording.h"
#include "bind/write_checks.h"
#include "core/parallel.h"
#include "cpu/dispatch.h"

namespace qkv {
namespace {

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
  PagedWriteArgs a{};
  check_paged_write(k, v, k_cache, v_cache, &a);
  const Array k_scale = read_scale(op, "k_scale", k_scale_in, k_cache, true);
  const Array v_scale = read_scale(op, "v_scale", v_scale_in, v_cache, true);
  std::vector<int64_t> shape, slots = read_ints(op, "slots", slots_in, &shape);
  const LiveInts live_slots(slots_in);
  check_slots_shape(shape, a.tokens);
  check_unsigned_slots(slots, py::reinterpret_borrow<py::array>(slots_in).dtype().kind());
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
  check_copied_shapes(shape, shape_to);
  std::vector<char*> data;
  std::vector<int64_t> block, copied;
  for (const py::handle item : arrays) {
    if (!py::isinstance<py::array>(item)) fail_type("copy_blocks: arrays must hold arrays");
    py::array x = py::reinterpret_borrow<py::array>(item);
    check_copied(std::vector<int64_t>(x.shape(), x.shape() + x.ndim()), (x.flags() & py::array::c_style) && x.writeable(), filled,
                 from, to);
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
