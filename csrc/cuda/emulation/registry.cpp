#include "cuda/emulation/registry.h"

#include <cctype>
#include <string>
#include <unordered_map>
#include <vector>

namespace qkv::emulation {
namespace {

struct Registry {
  std::unordered_map<std::string, const Kernel*> kernels;
  std::unordered_map<std::string, const Variable*> variables;
  std::vector<const Module*> modules;
};

Registry& registry() {
  static Registry* it = new Registry;  // static initialisers of other files use it, in any order
  return *it;
}

// nvcc puts hashes into the names of anonymous namespaces: _GLOBAL__N__466f7111_4_x_cu_8d4f2a1c.
std::string without_hashes(const char* mangled) {
  std::string name = mangled;
  for (size_t at = name.find("_GLOBAL__N__"); at != std::string::npos; at = name.find("_GLOBAL__N__", at + 1))
    for (size_t i = at + 11; i + 8 < name.size() && i < at + 200; ++i) {
      if (name[i] != '_') continue;
      size_t digits = 0;
      while (digits < 8 && std::isxdigit(static_cast<unsigned char>(name[i + 1 + digits]))) ++digits;
      if (digits == 8) name.replace(i + 1, 8, 8, 'h');
    }
  return name;
}

}  // namespace

Registration::Registration(const Module& module) {
  Registry& r = registry();
  r.modules.push_back(&module);
  for (unsigned i = 0; i < module.kernel_count; ++i) {
    const Kernel* const k = &module.kernels[i];
    const auto [it, fresh] = r.kernels.emplace(without_hashes(k->name), k);
    if (!fresh && (k->internal || (it->second && it->second->internal))) it->second = nullptr;
  }
  for (unsigned i = 0; i < module.variable_count; ++i)
    r.variables.emplace(without_hashes(module.variables[i].name), &module.variables[i]);
}

const Kernel* find_kernel(const char* mangled) {
  const auto it = registry().kernels.find(without_hashes(mangled));
  return it == registry().kernels.end() ? nullptr : it->second;
}

const Variable* find_variable(const char* name) {
  const auto it = registry().variables.find(without_hashes(name));
  return it == registry().variables.end() ? nullptr : it->second;
}

const Variable* variable_at(uintptr_t address) {
  for (const Module* m : registry().modules)
    for (unsigned i = 0; i < m->variable_count; ++i) {
      const Variable& v = m->variables[i];
      const uintptr_t base = reinterpret_cast<uintptr_t>(v.data);
      if (address >= base && address < base + v.size) return &v;
    }
  return nullptr;
}

}  // namespace qkv::emulation
