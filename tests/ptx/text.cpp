#include "text.h"

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstdlib>

namespace ptx {
namespace {

struct Token {
  std::string word;
  int line;
};

bool is_word(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%' || c == '.';
}

// Words and punctuation. `.loc` stays, with its numbers; other directives of debugging go.
std::vector<Token> tokens_of(const std::string& text) {
  std::vector<Token> tokens;
  int line = 1;
  size_t k = 0;
  const auto skip_line = [&] {
    while (k < text.size() && text[k] != '\n') ++k;
  };
  while (k < text.size()) {
    const char c = text[k];
    if (c == '\n') {
      ++line, ++k;
    } else if (std::isspace(static_cast<unsigned char>(c))) {
      ++k;
    } else if (text.compare(k, 2, "//") == 0) {
      skip_line();
    } else if (text.compare(k, 2, "/*") == 0) {
      const size_t end = text.find("*/", k);
      for (; k < end; ++k) line += text[k] == '\n';
      k += 2;
    } else if (c == '"') {
      const size_t end = text.find('"', k + 1);
      tokens.push_back({text.substr(k, end + 1 - k), line});
      k = end + 1;
    } else if (is_word(c)) {
      const size_t begin = k;
      // L1::no_allocate is part of an opcode
      while (k < text.size() && (is_word(text[k]) || text.compare(k, 2, "::") == 0))
        k += text[k] == ':' ? 2 : 1;
      const std::string word = text.substr(begin, k - begin);
      if (word == ".loc") {
        int file = 0, source_line = 0;
        std::sscanf(text.c_str() + k, "%d %d", &file, &source_line);
        tokens.push_back({".loc", line});
        tokens.push_back({std::to_string(source_line), line});
        skip_line();
      } else if (word == ".file" || word == ".version" || word == ".address_size") {
        skip_line();
      } else if (word == ".section") {
        for (; k < text.size() && text[k] != '}'; ++k) line += text[k] == '\n';
        ++k;
      } else {
        tokens.push_back({word, line});
      }
    } else {
      tokens.push_back({std::string(1, c), line});
      ++k;
    }
  }
  return tokens;
}

int bits_of(const std::string& type) {
  if (type == ".pred") return 1;
  const int bits = std::atoi(type.c_str() + 2);
  if (type.size() < 3 || type[0] != '.' || bits < 8 || bits > 128) throw Fault("unknown type " + type);
  return bits;
}

class Parser {
 public:
  explicit Parser(const std::string& text) : tokens_(tokens_of(text)) {}

  Module module() {
    Module result;
    while (!at_end()) {
      const std::string word = next();
      if (word == ".target") {
        next();
        while (peek(",")) next(), next();
      } else if (word == ".entry" || word == ".func") {
        function(word == ".entry", result);
      } else if (word == ".global" || word == ".const") {
        while (next() != ";") {  // no instruction here uses one
        }
      } else if (word == ".shared") {
        result.shared.push_back(variable());
        expect(";");
      } else if (word == ".loc") {
        next();
      } else if (word != ".visible" && word != ".extern" && word != ".weak" && word != ".common" &&
                 word != ";") {
        fail("unexpected " + word);
      }
    }
    return result;
  }

 private:
  bool at_end() const { return at_ >= tokens_.size(); }
  bool peek(const char* word) const { return !at_end() && tokens_[at_].word == word; }
  std::string next() {
    if (at_end()) throw Fault("the PTX ends too early");
    return tokens_[at_++].word;
  }
  void expect(const char* word) {
    const std::string found = next();
    if (found != word) fail("expected " + std::string(word) + ", found " + found);
  }
  [[noreturn]] void fail(const std::string& why) const {
    throw Fault("PTX, line " + std::to_string(tokens_[at_ - 1].line) + ": " + why);
  }

  int64_t number() {
    const bool negative = peek("-");
    if (negative) next();
    const std::string word = next();
    const auto value = static_cast<int64_t>(std::stoull(word, nullptr, 0));
    return negative ? -value : value;
  }

  // Behind the state space: [.align 8] [.u64 | .b8] [.ptr ...] name [ "[" size "]" ] [ = { bytes } ]
  Variable variable() {
    Variable result;
    size_t item = 1;
    for (;;) {
      const std::string word = next();
      if (word == ".align") {
        result.alignment = static_cast<size_t>(number());
      } else if (word[0] != '.') {
        result.name = word;
        break;
      } else if (word == ".ptr") {  // attributes of what a pointer parameter points to
        while (peek(".global") || peek(".shared") || peek(".local") || peek(".const")) next();
        if (peek(".align")) next(), number();
      } else if (word != ".visible" && word != ".extern") {
        item = static_cast<size_t>(bits_of(word)) / 8;
        result.alignment = std::max(result.alignment, item);
      }
    }
    result.size = item;
    if (peek("[")) {
      next();
      result.size = peek("]") ? 0 : item * static_cast<size_t>(number());
      expect("]");
    }
    return result;
  }

  std::vector<Variable> parameters() {
    std::vector<Variable> result;
    expect("(");
    while (!peek(")")) {
      const std::string word = next();
      if (word == ".param")
        result.push_back(variable());
      else if (word != ",")
        fail("unexpected " + word + " among parameters");
    }
    next();
    return result;
  }

  void function(bool is_entry, Module& module) {
    Function result;
    result.is_entry = is_entry;
    if (peek("(")) result.results = parameters();
    result.name = next();
    if (peek("(")) result.parameters = parameters();
    while (!peek("{") && !peek(";")) {
      const std::string word = next();
      if (word == ".loc") {
        next();
      } else if (word == ".pragma" || word == ".noreturn") {
      } else if (word[0] == '.') {
        result.limits[word] = number();
        while (peek(",")) next(), number();
      } else if (word[0] != '"') {
        fail("unexpected " + word + " before the body of " + result.name);
      }
    }
    if (next() == ";") return;  // a declaration
    for (int depth = 1; depth > 0;) {
      const std::string word = next();
      if (word == "{") {
        scopes_.emplace_back("_scope" + std::to_string(++num_scopes_));
        ++depth;
      } else if (word == "}") {
        if (--depth > 0) scopes_.pop_back();
      } else if (word == ".loc") {
        source_line_ = static_cast<int>(number());
      } else if (word == ".reg") {
        registers(result);
      } else if (word == ".local") {
        result.locals.push_back(variable());
        expect(";");
      } else if (word == ".shared") {
        result.shared.push_back(variable());
        expect(";");
      } else if (word == ".param") {
        Variable declared = variable();
        declared.name += scopes_.empty() ? "" : scopes_.back();
        result.call_parameters.push_back(declared);
        expect(";");
      } else if (word == ".pragma") {
        while (next() != ";") {
        }
      } else if (peek(":")) {
        next();
        result.labels[word] = result.statements.size();
      } else {
        --at_;
        result.statements.push_back(statement(result));
      }
    }
    module.functions[result.name] = std::move(result);
  }

  void registers(Function& function) {
    const int bits = bits_of(next());
    do {
      Register declared{next(), -1, bits};
      if (peek("<")) {
        next();
        declared.count = static_cast<int>(number());
        expect(">");
      } else if (!scopes_.empty()) {
        declared.prefix += scopes_.back();
      }
      function.registers.push_back(declared);
      if (!peek(",")) break;
      next();
    } while (true);
    expect(";");
  }

  // The name of a parameter or a register of the innermost scope that declares it.
  std::string scoped(const Function& function, const std::string& name) const {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      const std::string candidate = name + *scope;
      for (const Variable& declared : function.call_parameters)
        if (declared.name == candidate) return candidate;
      for (const Register& declared : function.registers)
        if (declared.count < 0 && declared.prefix == candidate) return candidate;
    }
    return name;
  }

  Text operand(const Function& function) {
    Text result;
    const std::string word = next();
    if (word == "{" || word == "(") {
      result.kind = word == "{" ? Text::vector : Text::list;
      const char* end = word == "{" ? "}" : ")";
      while (!peek(end)) {
        result.items.push_back(operand(function));
        if (peek(",")) next();
      }
      next();
    } else if (word == "[") {
      result.kind = Text::address;
      if (peek("-"))
        result.word = "0", result.offset = number();
      else
        result.word = scoped(function, next());
      while (!peek("]")) {
        const std::string sign = next();
        if (sign != "+" && sign != "-") fail("unexpected " + sign + " in an address");
        result.offset += sign == "+" ? number() : -number();
      }
      next();
    } else if (word == "!") {
      result = operand(function);
      result.negated = true;
    } else if (word == "-") {
      result = operand(function);
      result.word = "-" + result.word;
    } else {
      result.kind = std::isdigit(static_cast<unsigned char>(word[0])) ? Text::number : Text::name;
      result.word = result.kind == Text::name ? scoped(function, word) : word;
      if (peek("|")) {
        next();
        result.second = scoped(function, next());
      }
    }
    return result;
  }

  Statement statement(const Function& function) {
    Statement result;
    const size_t begin = at_;
    result.line = tokens_[at_].line;
    result.source_line = source_line_;
    if (peek("@")) {
      next();
      if (peek("!")) next(), result.guard_negated = true;
      result.guard = scoped(function, next());
    }
    result.opcode = next();
    while (!peek(";")) {
      if (peek(","))
        next();
      else
        result.operands.push_back(operand(function));
    }
    next();
    for (size_t k = begin; k + 1 < at_; ++k) {
      const std::string& word = tokens_[k].word;
      const bool glued = k == begin || word == "," || word == "]" || tokens_[k - 1].word == "[" ||
                         tokens_[k - 1].word == "@" || word == "+" || tokens_[k - 1].word == "+" ||
                         tokens_[k - 1].word == "-" || tokens_[k - 1].word == "!";
      result.source += (glued ? "" : " ") + word;
    }
    return result;
  }

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int source_line_ = 0, num_scopes_ = 0;
  std::vector<std::string> scopes_;  // suffix of the names that each open scope declares
};

}  // namespace

Module parse(const std::string& text) { return Parser(text).module(); }

}  // namespace ptx
