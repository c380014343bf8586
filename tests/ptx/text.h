// PTX as text, split into functions and statements. No meaning of an instruction is known here.
#pragma once

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace ptx {

// A fault of a program, or PTX that this interpreter does not know.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Operand of an instruction.
struct Text {
  enum Kind { name, number, vector, address, list };
  Kind kind = name;
  std::string word;         // of a name or a number; the base of an address
  bool negated = false;     // !%p1
  int64_t offset = 0;       // of an address
  std::vector<Text> items;  // of a vector or a list
  std::string second;       // %r1|%p1: the name behind the bar
};

struct Statement {
  std::string guard;  // name of the predicate, or empty
  bool guard_negated = false;
  std::string opcode;
  std::vector<Text> operands;
  int line = 0;         // in the PTX
  int source_line = 0;  // of the last .loc, 0 if there was none
  std::string source;   // the statement, for messages
};

// Variable in the state space .local, .shared or .param.
struct Variable {
  std::string name;
  size_t size = 0, alignment = 1;
};

struct Register {
  std::string prefix;  // %r, or the name of a single one
  int count = -1;      // %r0 .. %r(count - 1), or -1: the register is called like the prefix
  int bits = 0;        // 1 for predicates
};

struct Function {
  std::string name;
  bool is_entry = false;
  std::vector<Variable> parameters, results, locals, shared, call_parameters;
  std::vector<Register> registers;
  std::vector<Statement> statements;
  std::map<std::string, size_t> labels;   // number of the statement that follows
  std::map<std::string, int64_t> limits;  // .maxntid, .reqntid, .minnctapersm: their first number
};

struct Module {
  std::map<std::string, Function> functions;
  std::vector<Variable> shared;  // outside of functions; size 0: the dynamic shared memory of a launch
};

// Throws Fault if the text is no PTX.
Module parse(const std::string& text);

}  // namespace ptx
