# fastmmd._cuda, by FASTMMD_CUDA = AUTO | ON | OFF.

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

# Compute capabilities of the GPUs that are visible here, as 80;90.
function(fastmmd_visible_archs out)
  set(archs "")
  find_program(FASTMMD_NVIDIA_SMI nvidia-smi)
  if(FASTMMD_NVIDIA_SMI)
    execute_process(
      COMMAND "${FASTMMD_NVIDIA_SMI}" --query-gpu=compute_cap --format=csv,noheader
      OUTPUT_VARIABLE caps ERROR_QUIET RESULT_VARIABLE failed)
    if(NOT failed)
      string(REGEX MATCHALL "[0-9]+\\.[0-9]+" archs "${caps}")
      list(TRANSFORM archs REPLACE "\\." "")
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
    message(FATAL_ERROR "fastmmd: FASTMMD_CUDA_ARCHS=native, but nvidia-smi shows no GPU; "
                        "name the architectures, e.g. FASTMMD_CUDA_ARCHS='80;90'")
  else()
    set(_archs all)
  endif()
endif()
if(_archs STREQUAL "all")
  # What this nvcc knows of Turing to Blackwell; PTX of the newest serves what comes after it.
  execute_process(COMMAND "${CMAKE_CUDA_COMPILER}" --list-gpu-code OUTPUT_VARIABLE _known)
  set(_archs "")
  foreach(arch 75 80 86 89 90 100 120)
    if(_known MATCHES "sm_${arch}[^0-9]")
      list(APPEND _archs ${arch})
      set(_ptx ${arch})
    endif()
  endforeach()
endif()
# Hopper's own instructions (wgmma, setmaxnreg) exist only in the target sm_90a.
list(TRANSFORM _archs REPLACE "^90$" "90a")
list(REMOVE_DUPLICATES _archs)

set(_gencode "")
foreach(arch IN LISTS _archs)
  list(APPEND _gencode "-gencode=arch=compute_${arch},code=sm_${arch}")
endforeach()
if(_ptx)
  list(APPEND _gencode "-gencode=arch=compute_${_ptx},code=compute_${_ptx}")
  set(_ptx "${_ptx}-ptx")
endif()
string(REPLACE ";" " " FASTMMD_CUDA_ARCH_LIST "${_archs};${_ptx}")
string(STRIP "${FASTMMD_CUDA_ARCH_LIST}" FASTMMD_CUDA_ARCH_LIST)

pybind11_add_module(_cuda MODULE csrc/cuda/binding.cpp csrc/cuda/device.cu)
target_link_libraries(_cuda PRIVATE fastmmd_flags)
target_compile_definitions(_cuda PRIVATE FASTMMD_CUDA_ARCHS="${FASTMMD_CUDA_ARCH_LIST}")
target_compile_options(_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:${_gencode}>)
# The runtime is linked in, so the module imports on a machine that has no driver.
set_target_properties(_cuda PROPERTIES CUDA_RUNTIME_LIBRARY Static CUDA_STANDARD 17
                                       CUDA_VISIBILITY_PRESET hidden)
install(TARGETS _cuda LIBRARY DESTINATION fastmmd COMPONENT python)
message(STATUS "fastmmd: CUDA module built with nvcc ${CMAKE_CUDA_COMPILER_VERSION} "
               "for ${FASTMMD_CUDA_ARCH_LIST}")
