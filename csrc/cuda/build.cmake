# The extension modules qkv._cuda and qkv._cuda_emulated: the same kernels and the same binding, linked with NVIDIA's runtime or with
# the emulator's.
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(QKV_BUILD_CUDA STREQUAL "ON" OR QKV_BUILD_CUDA_EMULATION)
    message(FATAL_ERROR "no CUDA compiler was found: install nvcc, or set QKV_BUILD_CUDA=OFF and QKV_BUILD_CUDA_EMULATION=OFF")
  endif()
  message(STATUS "no CUDA compiler: the package is built without qkv._cuda")
  return()
endif()
# Says what is too old, and goes on without the kernels where nobody asked for them.
macro(too_old what)
  if(QKV_BUILD_CUDA STREQUAL "ON" OR QKV_BUILD_CUDA_EMULATION)
    message(FATAL_ERROR "the CUDA kernels need ${what}")
  endif()
  message(STATUS "the CUDA kernels need ${what}: the package is built without qkv._cuda")
  return()
endmacro()
if(CMAKE_VERSION VERSION_LESS 3.20)
  too_old("CMake 3.20 or newer, this is ${CMAKE_VERSION}")
endif()
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_ARCHITECTURES OFF)  # given below, file by file
if(CCACHE)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
endif()
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12)
  too_old("nvcc 12 or newer, this is ${CMAKE_CUDA_COMPILER_VERSION}")
endif()
find_package(CUDAToolkit REQUIRED)
set(build_cuda ON)
if(QKV_BUILD_CUDA STREQUAL "OFF")
  set(build_cuda OFF)
endif()

file(GLOB cuda_kernels CONFIGURE_DEPENDS csrc/cuda/*.cu)
set(portable_code "-gencode=arch=compute_80,code=sm_80" "-gencode=arch=compute_90a,code=sm_90a" "-gencode=arch=compute_80,code=compute_80")
set(hopper_code "-gencode=arch=compute_90a,code=sm_90a")
if(NOT build_cuda)  # the host's half is all that the emulator takes of the object files
  set(portable_code "-gencode=arch=compute_80,code=compute_80")
  set(hopper_code "-gencode=arch=compute_90a,code=compute_90a")
endif()
set(cuda_flags --expt-relaxed-constexpr -Xcompiler=-Wall,-Wextra,-fvisibility=hidden)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
  list(APPEND cuda_flags --compress-mode=size)  # a quarter of the machine code's size; drivers from CUDA 12.4 on read it
endif()
if(QKV_WERROR)
  list(APPEND cuda_flags -Werror=all-warnings)
endif()
add_library(cuda_kernels OBJECT ${cuda_kernels})
target_include_directories(cuda_kernels PRIVATE csrc)
target_compile_options(cuda_kernels PRIVATE ${cuda_flags})
foreach(kernel ${cuda_kernels})
  if(kernel MATCHES "_sm90")
    set_source_files_properties(${kernel} PROPERTIES COMPILE_OPTIONS "${hopper_code}")
  else()
    set_source_files_properties(${kernel} PROPERTIES COMPILE_OPTIONS "${portable_code}")
  endif()
endforeach()

# What both modules share.
add_library(cuda_bind OBJECT
    csrc/bind/cuda_additive_attention.cpp
    csrc/bind/cuda_attention.cpp
    csrc/bind/cuda_attention_paged.cpp
    csrc/bind/cuda_cache.cpp
    csrc/bind/cuda_choice.cpp
    csrc/bind/cuda_ops.cpp
    csrc/bind/cuda_tokens.cpp
    csrc/bind/device_array.cpp
    csrc/bind/device_recording.cpp
    csrc/bind/device_moves.cpp
    csrc/bind/dlpack_types.cpp
    csrc/bind/view.cpp
    csrc/cuda/arena.cpp
    csrc/cuda/graph.cpp
    csrc/cuda/runtime.cpp)
target_link_libraries(cuda_bind PRIVATE qkv_options pybind11::headers Python::Module)
target_include_directories(cuda_bind SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
target_compile_options(cuda_bind PRIVATE $<$<CONFIG:Release>:-O2>)

if(build_cuda)
  pybind11_add_module(_cuda MODULE NO_EXTRAS csrc/bind/cuda_module.cpp $<TARGET_OBJECTS:cuda_bind> $<TARGET_OBJECTS:cuda_kernels>)
  target_compile_definitions(_cuda PRIVATE QKV_CUDA_MODULE=_cuda)
  target_include_directories(_cuda SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
  target_link_libraries(_cuda PRIVATE qkv_options CUDA::cudart_static)
  target_link_options(_cuda PRIVATE -Wl,--exclude-libs,ALL)
  set_target_properties(_cuda PROPERTIES LINKER_LANGUAGE CXX CUDA_RUNTIME_LIBRARY None)
  install(TARGETS _cuda LIBRARY DESTINATION qkv)
endif()

if(QKV_BUILD_CUDA_EMULATION)
  # The PTX of each file, once more, and from it C++: csrc/cuda/emulation/README.md. That for sm_90a, which differs from that for
  # sm_80 in how bfloat16 is widened, and by what only Hopper has.
  set(translated)
  file(GLOB translator CONFIGURE_DEPENDS csrc/cuda/emulation/*.py)
  foreach(kernel ${cuda_kernels})
    get_filename_component(name ${kernel} NAME_WE)
    set(ptx ${CMAKE_CURRENT_BINARY_DIR}/ptx/${name}.ptx)
    add_custom_command(
        OUTPUT ${ptx}.cpp
        COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_CURRENT_BINARY_DIR}/ptx
        COMMAND ${CMAKE_CUDA_COMPILER} -std=c++17 -O3 -I${CMAKE_CURRENT_SOURCE_DIR}/csrc --expt-relaxed-constexpr -lineinfo -arch=compute_90a
                -MD -MF ${ptx}.d -MT ${ptx}.cpp -ptx ${kernel} -o ${ptx}
        COMMAND ${Python_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/csrc/cuda/emulation/ptx_to_cpp.py ${ptx} ${ptx}.cpp
        DEPENDS ${kernel} ${translator}
        DEPFILE ${ptx}.d
        VERBATIM)
    list(APPEND translated ${ptx}.cpp)
  endforeach()
  add_library(cuda_translated OBJECT ${translated})
  target_include_directories(cuda_translated PRIVATE csrc)
  target_compile_options(cuda_translated PRIVATE -Og -w -ffp-contract=off -fno-strict-aliasing)
  file(GLOB emulator CONFIGURE_DEPENDS csrc/cuda/emulation/*.cpp)
  add_library(cuda_emulator OBJECT ${emulator})
  target_link_libraries(cuda_emulator PRIVATE qkv_options)
  target_include_directories(cuda_emulator SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
  target_compile_options(cuda_emulator PRIVATE -O2 -ffp-contract=off)
  if(x86)
    include(CheckCXXSourceRuns)
    check_cxx_source_runs("int main() { return __builtin_cpu_supports(\"fma\") ? 0 : 1; }" QKV_HAS_FMA)
    if(QKV_HAS_FMA)  # never in a wheel, so the machine that builds is the machine that runs
      target_compile_options(cuda_translated PRIVATE -mfma)
      target_compile_options(cuda_emulator PRIVATE -mfma)
    endif()
  endif()
  pybind11_add_module(_cuda_emulated MODULE NO_EXTRAS csrc/bind/cuda_module.cpp $<TARGET_OBJECTS:cuda_bind>
      $<TARGET_OBJECTS:cuda_kernels> $<TARGET_OBJECTS:cuda_emulator> $<TARGET_OBJECTS:cuda_translated>)
  target_compile_definitions(_cuda_emulated PRIVATE QKV_CUDA_MODULE=_cuda_emulated QKV_CUDA_EMULATED)
  target_include_directories(_cuda_emulated SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
  target_link_libraries(_cuda_emulated PRIVATE qkv_options Threads::Threads)
  set_target_properties(_cuda_emulated PROPERTIES LINKER_LANGUAGE CXX CUDA_RUNTIME_LIBRARY None)
  install(TARGETS _cuda_emulated LIBRARY DESTINATION qkv)
endif()
