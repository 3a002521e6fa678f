# fastmmd_flags: how every translation unit is compiled.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
string(REPLACE "-O2" "-O3" CMAKE_CXX_FLAGS_RELEASE "${CMAKE_CXX_FLAGS_RELEASE}")

add_library(fastmmd_flags INTERFACE)
target_include_directories(fastmmd_flags INTERFACE "${PROJECT_SOURCE_DIR}/csrc")
# Contraction, errno and traps are given up; NaN, inf, signed zeros and the order of sums are not,
# so -ffast-math stays out: NaN in the data must come out as NaN, and bits must not depend on
# how a loop was cut.
target_compile_options(
  fastmmd_flags
  INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -ffp-contract=fast -fno-math-errno
            -fno-trapping-math>)

if(FASTMMD_SANITIZE)
  set(_sanitize -fsanitize=${FASTMMD_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -g)
  # Checks written out at every access of the unrolled tile loops take GCC minutes to optimise.
  if(FASTMMD_SANITIZE MATCHES "address" AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    list(APPEND _sanitize -O1 "SHELL:--param asan-instrumentation-with-call-threshold=0")
  endif()
  target_compile_options(fastmmd_flags INTERFACE ${_sanitize})
  target_link_options(fastmmd_flags INTERFACE ${_sanitize})
endif()

# OpenMP is linked by its soname alone (libgomp.so.1, no rpath), so that the module joins the
# copy that torch has loaded. ThreadSanitizer cannot see libgomp's barriers, so that build, and
# a compiler without OpenMP, run on std::thread.
set(FASTMMD_STD_THREADS OFF)
if(FASTMMD_SANITIZE MATCHES "thread")
  set(FASTMMD_STD_THREADS ON)
else()
  find_package(OpenMP COMPONENTS CXX)
  if(NOT OpenMP_CXX_FOUND)
    message(WARNING "fastmmd: no OpenMP found; threads come from std::thread, apart from torch's pool")
    set(FASTMMD_STD_THREADS ON)
  endif()
endif()
if(FASTMMD_STD_THREADS)
  set(THREADS_PREFER_PTHREAD_FLAG ON)
  find_package(Threads REQUIRED)
  target_link_libraries(fastmmd_flags INTERFACE Threads::Threads)
  target_compile_definitions(fastmmd_flags INTERFACE FASTMMD_STD_THREADS=1)
else()
  target_link_libraries(fastmmd_flags INTERFACE OpenMP::OpenMP_CXX)
endif()
