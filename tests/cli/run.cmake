# Runs the quanto command and checks what it prints and its exit codes.
function(expect code pattern)
  execute_process(COMMAND ${QUANTO} ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE out ERROR_VARIABLE err)
  if(NOT result EQUAL code OR NOT "${out}${err}" MATCHES "${pattern}")
    message(FATAL_ERROR "quanto ${ARGN}: got exit code ${result} and '${out}${err}', expected ${code} and '${pattern}'")
  endif()
endfunction()

expect(0 "^1\\.0\\.0\n$" --version)
expect(0 "qint4 +4 +int8" qtypes)
expect(0 "portable +yes +yes" isas)
expect(0 "qint2 +bfloat16 +512 rows +[a-z0-9_]+/qint2/bfloat16/[a-z_]+\n" isas --kernels)
expect(2 "^quanto: [^\n]+\n$" no-such-command)

set(ENV{QUANTO_ISA} portable)
expect(0 "portable +yes +yes +yes" isas)
expect(0 " portable/qint8/float32/few_rows" isas --kernels)
set(ENV{QUANTO_ISA} quantum)
expect(2 "^quanto: \\[QUANTO_ISA\\] isa: got 'quantum', expected one [^\n]+\n$" isas)
