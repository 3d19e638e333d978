// What generation counts and chooses between two steps, which have little time for Python: the block lists of a paged cache, and
// the best continuations of beams.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>

#include "bind/best.h"
#include "bind/bind.h"
#include "bind/block_pool.h"

namespace qkv {
namespace {

namespace py = pybind11;
using Lists = std::vector<BlockList*>;

template <class T, class From>
py::array_t<T> array_of(const std::vector<From>& values) {
  py::array_t<T> array(static_cast<py::ssize_t>(values.size()));
  std::copy(values.begin(), values.end(), array.mutable_data());
  return array;
}

// As many lists as counts, none of which is None, and no count negative.
void check(const Lists& lists, const std::vector<int64_t>* counts = nullptr) {
  bool fits = !counts || counts->size() == lists.size();
  for (const BlockList* list : lists) fits = fits && list;
  if (counts)
    fits = fits && std::all_of(counts->begin(), counts->end(), [](int64_t n) { return n >= 0 && n < INT64_C(1) << 48; });
  if (!fits) throw std::invalid_argument("BlockPool: there must be a count of 0 to 2^48 - 1 for each list");
}

// (B, N): their blocks, -1 beyond the last.
py::array_t<int32_t> tables(const Lists& lists) {
  check(lists);
  size_t longest = 0;
  for (const BlockList* list : lists) longest = std::max(longest, list->blocks.size());
  py::array_t<int32_t> array({lists.size(), longest});
  int32_t* to = array.mutable_data();
  for (const BlockList* list : lists) {
    std::fill(std::copy(list->blocks.begin(), list->blocks.end(), to), to + longest, -1);
    to += longest;
  }
  return array;
}

py::array_t<int64_t> lengths(const Lists& lists) {
  check(lists);
  py::array_t<int64_t> array(static_cast<py::ssize_t>(lists.size()));
  std::transform(lists.begin(), lists.end(), array.mutable_data(), [](const BlockList* list) { return list->length; });
  return array;
}

int64_t needed(const BlockPool& pool, const Lists& lists, const std::vector<int64_t>& counts) {
  check(lists, &counts);
  return pool.needed(lists, counts);
}

py::tuple append(BlockPool& pool, const Lists& lists, const std::vector<int64_t>& counts) {
  if (needed(pool, lists, counts) > pool.free()) throw std::invalid_argument("BlockPool: there are too few free blocks");
  const BlockPool::Added added = pool.append(lists, counts);
  return py::make_tuple(array_of<int64_t>(added.slots), added.from, added.to, added.filled);
}

int64_t within(const BlockList& list, int64_t length) {
  if (length < 0 || length > list.length) throw std::invalid_argument("BlockPool: a list has no such length");
  return length;
}

template <class T>
using Ready = py::array_t<T, py::array::c_style>;  // converted only where nothing is lost

BestTokens best_tokens(const Ready<float>& scores, const Ready<int64_t>& tokens, const Ready<int64_t>& gone, int64_t vocabulary) {
  if (scores.ndim() != 2 || tokens.ndim() != 2 || tokens.shape(0) != scores.shape(0) || tokens.shape(1) != scores.shape(1) ||
      scores.shape(1) == 0)
    throw std::invalid_argument("best_left, best_sums: scores and tokens must be (rows, m), m at least 1");
  return {scores.data(), tokens.data(), scores.shape(0), scores.shape(1), gone.data(), gone.size(), vocabulary};
}

// (rows,), or None.
py::object left(const Ready<float>& scores, const Ready<int64_t>& tokens, const Ready<int64_t>& gone, int64_t vocabulary) {
  const BestTokens of = best_tokens(scores, tokens, gone, vocabulary);
  py::array_t<int64_t> found(of.rows);
  return best_left(of, found.mutable_data()) ? py::object(found) : py::none();
}

// (sums, beams, tokens), all (texts, k), or None. rows, running: (texts, beams).
py::object sums(const Ready<float>& scores, const Ready<int64_t>& tokens, const Ready<int64_t>& gone, int64_t vocabulary,
                const Ready<int64_t>& rows, const Ready<float>& running, int64_t k) {
  const BestTokens of = best_tokens(scores, tokens, gone, vocabulary);
  if (running.ndim() != 2 || rows.size() != running.size() || k < 1)
    throw std::invalid_argument("best_sums: rows and running must be (texts, beams), k at least 1");
  for (py::ssize_t i = 0; i < rows.size(); ++i)
    if (rows.data()[i] < 0 || rows.data()[i] >= of.rows) throw std::invalid_argument("best_sums: there is no such row");
  const std::vector<py::ssize_t> shape = {running.shape(0), k};
  py::array_t<float> best(shape);
  py::array_t<int64_t> beam(shape), token(shape);
  const bool found = best_sums({of, rows.data(), running.data(), running.shape(0), running.shape(1), k, best.mutable_data(),
                                beam.mutable_data(), token.mutable_data()});
  return found ? py::object(py::make_tuple(best, beam, token)) : py::none();
}

}  // namespace

void bind_generate(py::module_& m) {
  m.def("best_left", left, py::arg("scores"), py::arg("tokens"), py::arg("gone"), py::arg("vocabulary"));
  m.def("best_sums", sums, py::arg("scores"), py::arg("tokens"), py::arg("gone"), py::arg("vocabulary"), py::arg("rows"),
        py::arg("running"), py::arg("k"));
  py::class_<BlockList>(m, "BlockList")
      .def(py::init<>())
      .def_readonly("length", &BlockList::length)
      .def_property_readonly("blocks", [](const BlockList& list) { return array_of<int32_t>(list.blocks); })
      .def(py::pickle(
          [](const BlockList& list) { return py::make_tuple(list.blocks, list.length); },
          [](const py::tuple& state) { return BlockList{state[0].cast<std::vector<int32_t>>(), state[1].cast<int64_t>()}; }));
  py::class_<BlockPool>(m, "BlockPool")
      .def(py::init([](int64_t block_size, int64_t blocks) {
             if (block_size < 1 || blocks < 0) throw std::invalid_argument("BlockPool: block_size must be at least 1, blocks 0");
             return BlockPool(block_size, blocks);
           }),
           py::arg("block_size"), py::arg("blocks"))
      .def_property_readonly("blocks", &BlockPool::blocks)
      .def_property_readonly("free", &BlockPool::free)
      .def("references", &BlockPool::references, py::arg("block"))
      .def("grow", &BlockPool::grow, py::arg("blocks"))
      .def("needed", needed, py::arg("lists"), py::arg("counts"))
      .def("append", append, py::arg("lists"), py::arg("counts"))
      .def(
          "count_on",
          [](const BlockPool& pool, const Lists& lists) {
            check(lists);
            return pool.count_on(lists);
          },
          py::arg("lists"))
      .def(
          "fork", [](BlockPool& pool, const BlockList& list, int64_t length) { return pool.fork(list, within(list, length)); },
          py::arg("list"), py::arg("length"))
      .def(
          "truncate", [](BlockPool& pool, BlockList& list, int64_t length) { pool.truncate(&list, within(list, length)); },
          py::arg("list"), py::arg("length"))
      .def_static("tables", tables, py::arg("lists"))
      .def_static("lengths", lengths, py::arg("lists"))
      .def(py::pickle(
          [](const BlockPool& pool) {
            const BlockPool::State s = pool.state();
            return py::make_tuple(s.size, s.references, s.free);
          },
          [](const py::tuple& state) {
            return BlockPool(BlockPool::State{state[0].cast<int64_t>(), state[1].cast<std::vector<int32_t>>(),
                                              state[2].cast<std::vector<int32_t>>()});
          }));
}

}  // namespace qkv
