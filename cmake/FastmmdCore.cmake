# fastmmd_core: the torch-free, Python-free static library behind the modules and the native tests.

add_library(fastmmd_core STATIC csrc/cpu/mmd.cpp csrc/cpu/sums.cpp csrc/cpu/lines.cpp
            csrc/cpu/random_features.cpp
            csrc/cpu/projected.cpp csrc/cpu/dispatch.cpp)
target_link_libraries(fastmmd_core PRIVATE fastmmd_flags)

# tile.cpp is compiled once per instruction set. Nothing but these objects may hold instructions
# beyond the baseline: dispatch.cpp chooses one of them at run time.
function(fastmmd_add_isa name)
  add_library(fastmmd_tile_${name} OBJECT csrc/cpu/tile.cpp)
  target_link_libraries(fastmmd_tile_${name} PRIVATE fastmmd_flags)
  target_compile_definitions(fastmmd_tile_${name} PRIVATE FASTMMD_ISA=${name})
  # GCC takes the undefined operands of its own AVX-512 intrinsics for a mistake of ours.
  target_compile_options(fastmmd_tile_${name} PRIVATE ${ARGN}
                         $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
  target_sources(fastmmd_core PRIVATE $<TARGET_OBJECTS:fastmmd_tile_${name}>)
endfunction()

set(FASTMMD_ISAS baseline)
fastmmd_add_isa(baseline)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  fastmmd_add_isa(avx2 -mavx2 -mfma)
  fastmmd_add_isa(avx512 -mavx512f -mavx512dq -mavx512bw -mavx512vl -mavx2 -mfma
                  -mprefer-vector-width=512)
  target_compile_definitions(fastmmd_core PRIVATE FASTMMD_HAVE_AVX2=1 FASTMMD_HAVE_AVX512=1)
  list(APPEND FASTMMD_ISAS avx2 avx512)
endif()
message(STATUS "fastmmd: CPU kernels for ${FASTMMD_ISAS}")
