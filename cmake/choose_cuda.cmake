# Decides from MDSSD_CUDA and the nvcc that it finds whether to build the CUDA backend. No GPU is
# needed.
#
# Sets MDSSD_WITH_CUDA. If it is on, also sets NVCC and MDSSD_CUDA_ARCHS_BUILT, otherwise
# MDSSD_CUDA_OFF_REASON. If nvcc does not work, MDSSD_CUDA=auto turns CUDA off and MDSSD_CUDA=on is
# an error.

if(NOT MDSSD_CUDA MATCHES "^(auto|on|off)$")
  message(FATAL_ERROR "MDSSD_CUDA is '${MDSSD_CUDA}'; it must be auto, on or off")
endif()

set(MDSSD_WITH_CUDA OFF)
set(MDSSD_CUDA_OFF_REASON "")
set(MDSSD_CUDA_ARCHS_BUILT "")

function(find_nvcc path_out)
  if(DEFINED ENV{CUDACXX})
    find_program(nvcc NAMES "$ENV{CUDACXX}" NO_CACHE)
  else()
    find_program(nvcc NAMES nvcc NO_CACHE
      HINTS "$ENV{CUDA_HOME}/bin" "$ENV{CUDA_PATH}/bin" PATHS /usr/local/cuda/bin /opt/cuda/bin)
  endif()
  set(${path_out} "${nvcc}" PARENT_SCOPE)
endfunction()

# Compiles and links one kernel with the options of the build. The reason is empty on success.
function(try_nvcc nvcc reason_out)
  set(folder "${CMAKE_BINARY_DIR}/try_nvcc")
  file(WRITE "${folder}/try.cu" "#include <cuda_bf16.h>\n"
    "__global__ void k(float x, __nv_bfloat16* y) { *y = __float2bfloat16_rn(x); }\n"
    "int main() { k<<<1, 1>>>(1, nullptr); }\n")
  set(host "")
  if(DEFINED ENV{CUDAHOSTCXX})
    set(host -ccbin "$ENV{CUDAHOSTCXX}")
  endif()
  execute_process(
    COMMAND "${nvcc}" -std=c++17 -cudart static ${host} -o "${folder}/try" "${folder}/try.cu"
    RESULT_VARIABLE status OUTPUT_VARIABLE said ERROR_VARIABLE said)
  set(reason "")
  if(NOT status STREQUAL "0")
    string(REGEX MATCH "[^\n]*(error|fatal|cannot|not found)[^\n]*" line "${said}")
    string(STRIP "${line}" line)
    set(reason "${nvcc} does not work (status ${status}): ${line}")
  endif()
  set(${reason_out} "${reason}" PARENT_SCOPE)
endfunction()

# Lists the architectures of this machine's GPUs. The list is empty if there is no driver.
function(find_gpus archs_out)
  set(archs "")
  find_program(smi NAMES nvidia-smi NO_CACHE)
  if(smi)
    execute_process(COMMAND "${smi}" --query-gpu=compute_cap --format=csv,noheader
      RESULT_VARIABLE status OUTPUT_VARIABLE said ERROR_QUIET)
    if(status STREQUAL "0")
      string(REGEX MATCHALL "[0-9]+\\.[0-9]" archs "${said}")
      list(TRANSFORM archs REPLACE "\\." "")
      list(REMOVE_DUPLICATES archs)
    endif()
  endif()
  set(${archs_out} "${archs}" PARENT_SCOPE)
endfunction()

# Lists the architectures to build. A list in MDSSD_CUDA_ARCHS is used as it is. "development" means
# this machine's GPUs, or 80 and 90 if it has none. "all" means every architecture below that this
# nvcc supports, and "ends" the oldest and the newest of these. Except for a list and for this machine's GPUs, PTX for the newest one is added,
# which the driver compiles for later GPUs. PTX for 100 is added with 120, since no GPU between the
# two, such as 110, can use code for 120.
function(choose_archs nvcc archs_out)
  execute_process(COMMAND "${nvcc}" --list-gpu-code OUTPUT_VARIABLE listed ERROR_QUIET)
  string(REGEX MATCHALL "sm_[0-9]+" known "${listed}")
  list(TRANSFORM known REPLACE "sm_" "")
  set(archs "")
  set(ours 70 75 80 86 89 90 100 120)
  if(MDSSD_CUDA_ARCHS STREQUAL "development")
    find_gpus(archs)
    foreach(arch IN LISTS archs)
      if(NOT arch IN_LIST known)
        message(STATUS "mdssd: ${nvcc} does not know this machine's GPU architecture ${arch}")
        set(archs "")
      endif()
    endforeach()
    list(TRANSFORM archs APPEND -real)
    set(ours 80 90)
  elseif(NOT MDSSD_CUDA_ARCHS MATCHES "^(all|ends)$")
    string(REGEX REPLACE "[ ,;]+" ";" archs "${MDSSD_CUDA_ARCHS}")
    foreach(arch IN LISTS archs)
      if(NOT arch MATCHES "^([0-9]+)[af]?(-real|-virtual)?$" OR NOT CMAKE_MATCH_1 IN_LIST known)
        message(FATAL_ERROR "MDSSD_CUDA_ARCHS: '${arch}' is not an architecture that ${nvcc} "
          "builds; it builds ${known} (each may end in -real or -virtual), all, ends or development")
      endif()
    endforeach()
  endif()
  if(NOT archs)
    foreach(arch IN LISTS ours)
      if(arch IN_LIST known)
        list(APPEND archs ${arch}-real)
        set(newest ${arch})
      endif()
    endforeach()
    if(MDSSD_CUDA_ARCHS STREQUAL "ends")
      list(GET archs 0 oldest)
      set(archs ${oldest} ${newest}-real)
      list(REMOVE_DUPLICATES archs)
    elseif(newest GREATER 100 AND 100 IN_LIST known)
      list(APPEND archs 100-virtual)
    endif()
    list(APPEND archs ${newest}-virtual)
  endif()
  set(${archs_out} "${archs}" PARENT_SCOPE)
endfunction()

if(MDSSD_CUDA STREQUAL "off")
  set(MDSSD_CUDA_OFF_REASON "MDSSD_CUDA=off")
else()
  find_nvcc(NVCC)
  if(NVCC)
    try_nvcc("${NVCC}" MDSSD_CUDA_OFF_REASON)
  elseif(DEFINED ENV{CUDACXX})
    set(MDSSD_CUDA_OFF_REASON "CUDACXX names '$ENV{CUDACXX}', which does not exist")
  else()
    set(MDSSD_CUDA_OFF_REASON "no nvcc on PATH, in CUDA_HOME or in /usr/local/cuda")
  endif()
  if(NOT MDSSD_CUDA_OFF_REASON)
    set(MDSSD_WITH_CUDA ON)
  elseif(MDSSD_CUDA STREQUAL "on")
    message(FATAL_ERROR "MDSSD_CUDA=on, but ${MDSSD_CUDA_OFF_REASON}.\n"
      "Install the CUDA toolkit 11.8 or later (its compiler nvcc and the static runtime; "
      "Debian, Ubuntu: apt install nvidia-cuda-toolkit, or NVIDIA's own packages), put nvcc on "
      "PATH or name it by CUDACXX, or build without it by MDSSD_CUDA=off.")
  endif()
endif()

if(MDSSD_WITH_CUDA)
  choose_archs("${NVCC}" MDSSD_CUDA_ARCHS_BUILT)
endif()
