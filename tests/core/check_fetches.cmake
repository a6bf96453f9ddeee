# Fails if the compiler has dropped the prefetches of the first codes, as GCC does with a function of nothing else: the
# results stay the same, and small layers take up to a fifth longer.
string(REPLACE "," ";" OBJECTS "${OBJECTS}")
list(FILTER OBJECTS INCLUDE REGEX "/src/matmul\\.cpp\\.")
execute_process(COMMAND ${OBJDUMP} -d --no-show-raw-insn ${OBJECTS} OUTPUT_VARIABLE code COMMAND_ERROR_IS_FATAL ANY)
foreach(fetch prefetchnta prefetcht1)
  string(REGEX MATCHALL "${fetch}" found "${code}")
  list(LENGTH found count)
  if(count EQUAL 0)
    message(FATAL_ERROR "${OBJECTS} has no ${fetch}, expected those of FirstCodes")
  endif()
  message(STATUS "${count} ${fetch}")
endforeach()
