# fastmmd._cuda, by FASTMMD_CUDA = AUTO | ON | OFF.

option(FASTMMD_CUDA_VERBOSE "Let ptxas tell the registers, shared memory and spills of kernels" OFF)
mark_as_advanced(FASTMMD_CUDA_VERBOSE)

if(NOT FASTMMD_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "fastmmd: FASTMMD_CUDA is '${FASTMMD_CUDA}'; it must be AUTO, ON or OFF")
endif()
if(FASTMMD_CUDA STREQUAL "OFF")
  message(STATUS "fastmmd: CUDA module not built (FASTMMD_CUDA=OFF)")
  return()
endif()

include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(FASTMMD_CUDA STREQUAL "ON")
    message(FATAL_ERROR "\
fastmmd: FASTMMD_CUDA=ON, but no CUDA compiler was found.\n\
Put nvcc (CUDA 12 or 13) on PATH, or name it with CUDACXX=/path/to/nvcc or \
-DCMAKE_CUDA_COMPILER=/path/to/nvcc; or build the CPU module alone with FASTMMD_CUDA=OFF.")
  endif()
  message(STATUS "fastmmd: CUDA module not built (FASTMMD_CUDA=AUTO and no CUDA compiler found)")
  return()
endif()

# Architectures are passed as -gencode options made here: what CMake understands of them (90a,
# native) differs between its releases.
set(CMAKE_CUDA_ARCHITECTURES OFF)
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.0)
  message(FATAL_ERROR "fastmmd: ${CMAKE_CUDA_COMPILER} is CUDA ${CMAKE_CUDA_COMPILER_VERSION}; "
                      "12.0 or later is needed (or FASTMMD_CUDA=OFF)")
endif()

# Compute capabilities of the GPUs that are visible here, as 80;90, without those that are too old.
function(fastmmd_visible_archs out)
  set(archs "")
  find_program(FASTMMD_NVIDIA_SMI nvidia-smi)
  if(FASTMMD_NVIDIA_SMI)
    execute_process(
      COMMAND "${FASTMMD_NVIDIA_SMI}" --query-gpu=compute_cap --format=csv,noheader
      OUTPUT_VARIABLE caps ERROR_QUIET RESULT_VARIABLE failed)
    if(NOT failed)
      string(REGEX MATCHALL "[0-9]+\\.[0-9]" caps "${caps}")
      foreach(cap IN LISTS caps)
        string(REPLACE "." "" arch ${cap})
        if(arch GREATER_EQUAL 75)
          list(APPEND archs ${arch})
        endif()
      endforeach()
      list(REMOVE_DUPLICATES archs)
    endif()
  endif()
  set(${out} "${archs}" PARENT_SCOPE)
endfunction()

set(_archs "${FASTMMD_CUDA_ARCHS}")
set(_ptx "")
if(_archs STREQUAL "" OR _archs STREQUAL "native")
  fastmmd_visible_archs(_visible)
  if(_visible)
    set(_archs "${_visible}")
  elseif(_archs STREQUAL "native")
    message(FATAL_ERROR "fastmmd: FASTMMD_CUDA_ARCHS=native, but nvidia-smi shows no GPU of "
                        "compute capability 7.5 or later; name the architectures, e.g. FASTMMD_CUDA_ARCHS='80;90'")
  else()
    set(_archs all)
  endif()
endif()
if(_archs STREQUAL "all")
  # What this nvcc knows of Turing to Blackwell. Code of 80 runs on 86 and 89 as well, which have
  # no instruction that the kernels would use besides; PTX of the newest serves what comes after it.
  execute_process(COMMAND "${CMAKE_CUDA_COMPILER}" --list-gpu-code OUTPUT_VARIABLE _known)
  set(_archs "")
  foreach(arch 75 80 90 100 120)
    if(_known MATCHES "sm_${arch}[^0-9]")
      list(APPEND _archs ${arch})
      set(_ptx ${arch})
    endif()
  endforeach()
endif()
# Hopper's own instructions (wgmma, setmaxnreg) exist only in the target sm_90a.
list(TRANSFORM _archs REPLACE "^90$" "90a")
list(REMOVE_DUPLICATES _archs)

# The options that name architectures to nvcc.
function(fastmmd_gencode out archs ptx)
  set(options "")
  foreach(arch IN LISTS archs)
    list(APPEND options "-gencode=arch=compute_${arch},code=sm_${arch}")
  endforeach()
  if(ptx)
    list(APPEND options "-gencode=arch=compute_${ptx},code=compute_${ptx}")
  endif()
  set(${out} "${options}" PARENT_SCOPE)
endfunction()

string(REPLACE ";" " " FASTMMD_CUDA_ARCH_LIST "${_archs}")
if(_ptx)
  string(APPEND FASTMMD_CUDA_ARCH_LIST " ${_ptx}-ptx")
endif()

# A file is compiled for one architecture after another, unless nvcc is given threads: with two, a
# long file at the end keeps more than one core busy. Together they stay within the number of
# compilers asked for, if one is, but for one nvcc that fills in while others are not in threads.
list(LENGTH _archs _nvcc_threads)
set(_pool "")
if(_nvcc_threads GREATER 2)
  set(_nvcc_threads 2)
endif()
if(DEFINED ENV{CMAKE_BUILD_PARALLEL_LEVEL} AND CMAKE_GENERATOR MATCHES "Ninja")
  set(_level "$ENV{CMAKE_BUILD_PARALLEL_LEVEL}")
  if(_nvcc_threads GREATER _level)
    set(_nvcc_threads 1)
  endif()
  math(EXPR _pool "(${_level} + ${_nvcc_threads} - 1) / ${_nvcc_threads} + ${_nvcc_threads} - 1")
  set_property(GLOBAL APPEND PROPERTY JOB_POOLS fastmmd_nvcc=${_pool})
endif()

# A file of kernels for tensor cores is compiled for those that have them; where none has, for all,
# so that the module is whole.
file(GLOB FASTMMD_CUDA_SOURCES CONFIGURE_DEPENDS csrc/cuda/*.cu)
foreach(source IN LISTS FASTMMD_CUDA_SOURCES)
  set(_able "${_archs}")
  set(_able_ptx "${_ptx}")
  get_filename_component(_name "${source}" NAME_WE)
  if(_name MATCHES "wgmma")
    list(FILTER _able INCLUDE REGEX "^90a$")
    set(_able_ptx "")
  elseif(_name MATCHES "mma|fused")
    list(FILTER _able EXCLUDE REGEX "^75$")
  endif()
  if(NOT _able)
    set(_able "${_archs}")
    set(_able_ptx "${_ptx}")
  endif()
  fastmmd_gencode(_gencode "${_able}" "${_able_ptx}")
  set_property(SOURCE "${source}" APPEND PROPERTY COMPILE_OPTIONS ${_gencode})
endforeach()
pybind11_add_module(_cuda MODULE csrc/cuda/binding.cpp ${FASTMMD_CUDA_SOURCES})
target_link_libraries(_cuda PRIVATE fastmmd_flags)
target_compile_definitions(_cuda PRIVATE FASTMMD_CUDA_ARCHS="${FASTMMD_CUDA_ARCH_LIST}")
# Fast-math stays out: NaN must come out as NaN. What may be approximate says so in the source.
# Constant expressions of plain headers count as code of both sides.
target_compile_options(
  _cuda
  PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--threads=${_nvcc_threads} --expt-relaxed-constexpr
          -Xfatbin=-compress-all $<$<BOOL:${FASTMMD_CUDA_VERBOSE}>:-Xptxas=-v>>)
# The runtime is linked in, so the module imports on a machine that has no driver.
set_target_properties(_cuda PROPERTIES CUDA_RUNTIME_LIBRARY Static CUDA_STANDARD 17
                                       CUDA_STANDARD_REQUIRED ON CUDA_VISIBILITY_PRESET hidden)
if(_pool)
  set_target_properties(_cuda PROPERTIES JOB_POOL_COMPILE fastmmd_nvcc)
endif()
install(TARGETS _cuda LIBRARY DESTINATION fastmmd COMPONENT python)
message(STATUS "fastmmd: CUDA module built with nvcc ${CMAKE_CUDA_COMPILER_VERSION} "
               "for ${FASTMMD_CUDA_ARCH_LIST}")
