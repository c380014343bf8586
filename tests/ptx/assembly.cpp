// Assembly of a kernel: operands get places, and every instruction gets the function that executes it.
//
// Only instructions with defined rounding are known: no .ftz, .approx or .full, and no addition or
// multiplication without a rounding, which ptxas may fuse.
#include <set>

#include "operations.h"

namespace ptx {
namespace {

// ---- choice of a function by type ----

struct Type {
  char kind = 0;  // u, s, b, f; h: bfloat16; p: predicate; x: two halves
  int bits = 0;
};

Type type_of(const std::string& word) {
  if (word == "pred") return {'p', 1};
  if (word == "s16x2" || word == "u16x2") return {'x', 32};
  if (word == "bf16") return {'h', 16};
  if (word.size() < 2 || !std::strchr("usbf", word[0])) return {};
  const int bits = std::atoi(word.c_str() + 1);
  if (word != std::string(1, word[0]) + std::to_string(bits)) return {};
  return {word[0], bits};
}

// Calls choose(T{}) with the type that stands for `type`.
template <class Choose>
Run by_type(Type type, const Choose& choose) {
  const bool is_signed = type.kind == 's';
  if (type.kind == 'f')
    return type.bits == 32 ? choose(float{}) : type.bits == 64 ? choose(double{}) : nullptr;
  if (type.kind != 'u' && type.kind != 'b' && type.kind != 's') return nullptr;
  switch (type.bits) {
    case 8:
      return is_signed ? choose(int8_t{}) : choose(uint8_t{});
    case 16:
      return is_signed ? choose(int16_t{}) : choose(uint16_t{});
    case 32:
      return is_signed ? choose(int32_t{}) : choose(uint32_t{});
    case 64:
      return is_signed ? choose(int64_t{}) : choose(uint64_t{});
    default:
      return nullptr;
  }
}

enum Kinds { kIntegers = 1, kFloats = 2, kUnsignedOnly = 4, kWords = 8 };

template <class T>
constexpr bool admits(int kinds) {
  if (sizeof(T) == 1) return false;
  if (is_float<T>) return kinds & kFloats;
  if (!(kinds & kIntegers)) return false;
  if ((kinds & kUnsignedOnly) && std::is_signed_v<T>) return false;
  return !(kinds & kWords) || sizeof(T) >= 4;
}

template <class F, int kKinds>
Run binary_of(Type type) {
  return by_type(type, [](auto zero) -> Run {
    using T = decltype(zero);
    if constexpr (admits<T>(kKinds)) return &binary<F, T>;
    return nullptr;
  });
}

template <class F, int kKinds>
Run unary_of(Type type) {
  return by_type(type, [](auto zero) -> Run {
    using T = decltype(zero);
    if constexpr (admits<T>(kKinds)) return &unary<F, T>;
    return nullptr;
  });
}

#define BY_TYPE(function, kinds)                           \
  [](Type type) {                                          \
    return by_type(type, [](auto zero) -> Run {            \
      using T = decltype(zero);                            \
      if constexpr (admits<T>(kinds)) return &function<T>; \
      return nullptr;                                      \
    });                                                    \
  }

// ---- assembly ----

bool contains(const std::vector<std::string>& words, const char* word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

class Assembler {
 public:
  Assembler(const Module& module, const std::string& name)
      : module_(module), kernel_(std::make_unique<Kernel>()) {
    kernel_->name = name;
    const Function& entry = function(name);
    if (!entry.is_entry) throw Fault(name + " is no kernel");
    for (const Variable& shared : module.shared)
      if (shared.size) place_shared(shared);
    for (const Variable& parameter : entry.parameters) {
      const size_t at = aligned(kernel_->parameter_bytes, parameter.alignment);
      kernel_->parameters.push_back({at, parameter.size});
      kernel_->parameter_bytes = at + parameter.size;
      symbols_[name + "/" + parameter.name] = {Space::parameters, at};
    }
    const auto limit = [&](const char* directive, int64_t otherwise) {
      const auto found = entry.limits.find(directive);
      return found == entry.limits.end() ? otherwise : found->second;
    };
    kernel_->max_threads = limit(".maxntid", limit(".reqntid", 1024));
    kernel_->min_blocks = limit(".minnctapersm", 1);
    need(name);
    place_variables();
    // The dynamic shared memory lies behind the static one.
    kernel_->static_shared_bytes = aligned(kernel_->static_shared_bytes, 16);
    for (const Variable& shared : module.shared)
      if (!shared.size)
        symbols_["/" + shared.name] = {Space::shared, kSharedBase + kernel_->static_shared_bytes};
    for (const std::string& needed : needed_) assemble(function(needed));
    for (const auto& [instruction, callee] : calls_) kernel_->code[instruction].target = begins_.at(callee);
  }

  std::unique_ptr<Kernel> take() { return std::move(kernel_); }

 private:
  static size_t aligned(size_t size, size_t alignment) {
    return (size + alignment - 1) / alignment * alignment;
  }

  const Function& function(const std::string& name) const {
    const auto found = module_.functions.find(name);
    if (found == module_.functions.end()) throw Fault("the PTX has no function " + name);
    return found->second;
  }

  void need(const std::string& name) {
    if (std::find(needed_.begin(), needed_.end(), name) != needed_.end()) return;
    needed_.push_back(name);
    for (const Statement& statement : function(name).statements)
      if (statement.opcode.rfind("call", 0) == 0)
        for (const Text& operand : statement.operands)
          if (operand.kind == Text::name) need(operand.word);
  }

  void place_shared(const Variable& variable) {
    const size_t at = aligned(kernel_->static_shared_bytes, variable.alignment);
    symbols_["/" + variable.name] = {Space::shared, kSharedBase + at};
    kernel_->static_shared_bytes = at + variable.size;
  }

  void place(const Function& function, const Variable& variable) {
    const size_t at = aligned(kernel_->thread_bytes, variable.alignment);
    symbols_[function.name + "/" + variable.name] = {Space::thread, at};
    kernel_->thread_bytes = at + variable.size;
  }

  // Variables of a thread: .local of all functions, then .param of all functions.
  void place_variables() {
    for (const std::string& name : needed_)
      for (const Variable& variable : function(name).locals) place(function(name), variable);
    kernel_->local_bytes = kernel_->thread_bytes;
    for (const std::string& name : needed_) {
      const Function& needed = function(name);
      for (const Variable& variable : needed.shared) place_shared(variable);
      for (const Variable& variable : needed.call_parameters) place(needed, variable);
      if (needed.is_entry) continue;
      for (const auto* list : {&needed.parameters, &needed.results})
        for (const Variable& variable : *list) place(needed, variable);
    }
    kernel_->thread_bytes = aligned(kernel_->thread_bytes, 16);
  }

  // ---- operands ----

  [[noreturn]] void fail(const std::string& why) const {
    throw Fault(readable(kernel_->name) + ", line " + std::to_string(statement_->line) +
                " of the PTX: " + statement_->source + ": " + why);
  }

  Operand new_register(int bits) {
    Operand result;
    result.bits = static_cast<uint8_t>(bits);
    result.at = static_cast<uint32_t>(kernel_->register_bytes);
    result.index = kernel_->num_registers++;
    kernel_->register_bytes += bits == 1 ? 32 : static_cast<size_t>(bits) / 8 * kLanes;
    return result;
  }

  int declared_bits(const std::string& name) const {
    for (const Register& declared : function_->registers) {
      if (declared.count < 0) {
        if (declared.prefix == name) return declared.bits;
      } else if (name.rfind(declared.prefix, 0) == 0 && name.size() > declared.prefix.size() &&
                 name.find_first_not_of("0123456789", declared.prefix.size()) == std::string::npos &&
                 std::stoi(name.substr(declared.prefix.size())) < declared.count) {
        return declared.bits;
      }
    }
    fail(name + " is not declared");
  }

  Operand register_of(const std::string& name) {
    if (name == "_") return new_register(64);
    static const std::set<std::string> specials = {"%tid.x",
                                                   "%tid.y",
                                                   "%tid.z",
                                                   "%ntid.x",
                                                   "%ntid.y",
                                                   "%ntid.z",
                                                   "%ctaid.x",
                                                   "%ctaid.y",
                                                   "%ctaid.z",
                                                   "%nctaid.x",
                                                   "%nctaid.y",
                                                   "%nctaid.z",
                                                   "%laneid",
                                                   "%warpid",
                                                   "%lanemask_lt",
                                                   "%lanemask_le",
                                                   "%lanemask_eq",
                                                   "%lanemask_ge",
                                                   "%lanemask_gt",
                                                   "%cluster_ctarank",
                                                   "%cluster_nctarank",
                                                   "%cluster_ctaid.x",
                                                   "%cluster_nctaid.x",
                                                   "%clusterid.x",
                                                   "%nclusterid.x"};
    if (specials.count(name)) {
      auto [place, is_new] = kernel_->special.try_emplace(name);
      if (is_new) {
        place->second = new_register(32);
        place->second.index = 0;
      }
      return place->second;
    }
    const std::string key = function_->name + "/" + name;
    auto [place, is_new] = registers_.try_emplace(key);
    if (is_new) place->second = new_register(declared_bits(name));
    return place->second;
  }

  Operand constant(uint64_t value, int bits) {
    auto [place, is_new] = constants_.try_emplace({value, bits});
    if (is_new) {
      Operand& result = place->second;
      result.constant = true;
      result.bits = static_cast<uint8_t>(bits);
      auto& bytes = kernel_->constants;
      bytes.resize(aligned(bytes.size(), 32));
      result.at = static_cast<uint32_t>(bytes.size());
      const size_t size = bits == 1 ? 4 : static_cast<size_t>(bits) / 8;
      for (unsigned lane = 0; lane < (bits == 1 ? 1 : kLanes); ++lane)
        bytes.insert(bytes.end(), reinterpret_cast<unsigned char*>(&value),
                     reinterpret_cast<unsigned char*>(&value) + size);
    }
    return place->second;
  }

  // Symbol of this function or of the module, or null.
  const std::pair<Space, uint64_t>* symbol(const std::string& name) const {
    for (const std::string& key : {function_->name + "/" + name, "/" + name}) {
      const auto found = symbols_.find(key);
      if (found != symbols_.end()) return &found->second;
    }
    return nullptr;
  }

  Operand operand(const Text& text, int bits) {
    if (text.kind == Text::number || (text.kind == Text::name && text.word[0] == '-')) {
      const std::string& word = text.word;
      if (word.size() > 2 && (word[1] == 'f' || word[1] == 'F'))
        return constant(std::stoull(word.substr(2), nullptr, 16), 32);
      if (word.size() > 2 && (word[1] == 'd' || word[1] == 'D'))
        return constant(std::stoull(word.substr(2), nullptr, 16), 64);
      const bool negative = word[0] == '-';
      uint64_t value = std::stoull(word.substr(negative), nullptr, 0);
      if (negative) value = 0 - value;
      if (bits == 1) return constant(value ? kAllLanes : 0, 1);
      return constant(bits == 64 ? value : value & ((uint64_t{1} << bits) - 1), bits);
    }
    if (text.kind != Text::name) fail("an operand of this kind is unknown here");
    if (const auto* found = symbol(text.word)) return constant(found->second, bits);
    Operand result = register_of(text.word);
    result.negated = text.negated;
    return result;
  }

  // Operand that must have the given size.
  Operand exact(const Text& text, int bits) {
    const Operand result = operand(text, bits);
    if (result.bits != bits && text.word != "_")
      fail(text.word + " has " + std::to_string(result.bits) + " bits, not " + std::to_string(bits));
    return result;
  }

  void add(Instruction& i, const Operand& operand) {
    if (i.num_operands == i.operands.size()) fail("too many operands");
    i.operands[i.num_operands++] = operand;
  }

  void add_address(Instruction& i, const Text& text) {
    if (text.kind != Text::address) fail("expected an address");
    i.offset = text.offset;
    if (const auto* found = symbol(text.word)) {
      if (i.space == Space::thread && found->first == Space::parameters) i.space = Space::parameters;
      const bool in_cluster = i.space == Space::cluster && found->first == Space::shared;
      if (i.space != found->first && !in_cluster) fail(text.word + " is in another state space");
      add(i, constant(found->second, 64));
      return;
    }
    if (text.word == "0") fail("an absolute address");
    const Operand base = register_of(text.word);
    if (base.bits < 32) fail("an address has 32 or 64 bits");
    // The parameters of a kernel and of a function are different memories.
    if (i.space == Space::thread && contains(words_, "param") && function_->is_entry)
      i.space = Space::parameters;
    add(i, base);
  }

  // ---- instructions ----

  void assemble(const Function& function) {
    function_ = &function;
    begins_[function.name] = static_cast<uint32_t>(kernel_->code.size());
    kernel_->functions.push_back(function.name);
    const size_t begin = kernel_->code.size();
    for (const Statement& statement : function.statements) {
      statement_ = &statement;
      kernel_->code.push_back(instruction());
    }
    // The end of a function is a return.
    static const Statement end{"", false, "ret", {}, 0, 0, "the end of the function"};
    statement_ = &end;
    kernel_->code.push_back(instruction());
    for (size_t k = begin; k < kernel_->code.size(); ++k) {
      Instruction& i = kernel_->code[k];
      if (i.flow != Flow::branch) continue;
      statement_ = i.statement;
      const auto label = function.labels.find(i.statement->operands.at(0).word);
      if (label == function.labels.end()) fail("there is no such label");
      i.target = static_cast<uint32_t>(begin + label->second);
    }
  }

  Instruction instruction() {
    Instruction i;
    i.statement = statement_;
    i.function = static_cast<uint32_t>(kernel_->functions.size() - 1);
    if (!statement_->guard.empty()) {
      i.guarded = true;
      i.guard = register_of(statement_->guard);
      i.guard.negated = statement_->guard_negated;
    }
    words_.clear();
    const std::string& opcode = statement_->opcode;
    for (size_t at = 0; at <= opcode.size();) {
      const size_t dot = std::min(opcode.find('.', at), opcode.size());
      words_.push_back(opcode.substr(at, dot - at));
      at = dot + 1;
    }
    decode(i);
    if (!i.run && (i.flow == Flow::next || i.flow == Flow::collective)) unknown();
    return i;
  }

  [[noreturn]] void unknown() const { fail("the opcode " + statement_->opcode + " is unknown"); }

  const std::vector<Text>& given() const { return statement_->operands; }

  // The modifiers between the name and the type must all be among these.
  void only(const std::set<std::string>& known, size_t types = 1) const {
    for (size_t k = 1; k + types < words_.size(); ++k)
      if (!known.count(words_[k])) unknown();
  }

  void require_operands(size_t count) const {
    if (given().size() != count) fail("expected " + std::to_string(count) + " operands");
  }

  void decode(Instruction& i) {
    const std::string& name = words_[0];
    const Type type = type_of(words_.back());
    if (name == "ld" || name == "ldu" || name == "st") return memory(i, type, name == "st");
    if (name == "atom" || name == "red") return atomic_operation(i, type, name == "atom");
    if (name == "mov") return move_operation(i, type);
    if (name == "cvta") return address_conversion(i);
    if (name == "mapa") return address_mapping(i, type);
    if (name == "cvt") return conversion(i, type);
    if (name == "setp") return comparison(i, type);
    if (name == "selp") {
      only({});
      require_operands(4);
      for (size_t k = 0; k < 3; ++k) add(i, exact(given()[k], type.bits));
      add(i, exact(given()[3], 1));
      i.run = BY_TYPE(select, kIntegers | kFloats)(type);
      return;
    }
    if (name == "bra" || name == "call" || name == "ret" || name == "exit" || name == "bar" ||
        name == "barrier" || name == "membar" || name == "fence" || name == "trap" || name == "nanosleep" ||
        name == "shfl" || name == "vote" || name == "match" || name == "redux" || name == "ldmatrix" ||
        name == "stmatrix")
      return control(i, type);
    arithmetic(i, type);
  }

  void arithmetic(Instruction& i, Type type) {
    const std::string& name = words_[0];
    const auto operands = [&](std::initializer_list<int> sizes) {
      require_operands(sizes.size());
      size_t k = 0;
      for (const int bits : sizes) add(i, exact(given()[k++], bits));
    };
    const bool is_f = type.kind == 'f';
    // Without .rn, a multiplication and an addition may be fused.
    const auto rounded = [&] {
      if (is_f && words_.size() != 3) unknown();
      only(is_f ? std::set<std::string>{"rn"} : std::set<std::string>{});
    };
    const int bits = type.bits;
    const std::string& mode = words_[1];
    if (type.kind == 'p') {
      only({});
      if (name == "not") {
        operands({1, 1});
        i.run = &predicate_not;
      } else {
        operands({1, 1, 1});
        i.run = name == "and"   ? &predicate_binary<And>
                : name == "or"  ? &predicate_binary<Or>
                : name == "xor" ? &predicate_binary<Xor>
                                : nullptr;
      }
    } else if (name == "add" && type.kind == 'x') {
      only({});
      operands({32, 32, 32});
      i.run = &add_halves;
    } else if (name == "add" || name == "sub") {
      rounded();
      operands({bits, bits, bits});
      i.run = name == "add" ? binary_of<Add, kIntegers | kFloats>(type)
                            : binary_of<Sub, kIntegers | kFloats>(type);
    } else if (name == "mul" && is_f) {
      rounded();
      operands({bits, bits, bits});
      i.run = binary_of<Mul, kFloats>(type);
    } else if (name == "mul" || name == "mad") {
      only({"lo", "hi", "wide"});
      const int wide = mode == "wide" ? 2 * bits : bits;
      if (name == "mul")
        operands({wide, bits, bits});
      else
        operands({wide, bits, bits, wide});
      if (is_f) unknown();
      if (mode == "wide" && bits > 32) unknown();
      if (name == "mul")
        i.run = mode == "lo"   ? binary_of<Mul, kIntegers>(type)
                : mode == "hi" ? binary_of<MulHigh, kIntegers>(type)
                               : wide_of(type, false);
      else
        i.run = mode == "wide" ? wide_of(type, true) : mad_of(type, mode == "hi");
    } else if (name == "fma") {
      rounded();
      operands({bits, bits, bits, bits});
      i.run = BY_TYPE(fma, kFloats)(type);
    } else if (name == "div") {
      rounded();
      operands({bits, bits, bits});
      i.run = binary_of<Div, kIntegers | kFloats>(type);
    } else if (name == "sqrt") {
      rounded();
      operands({bits, bits});
      i.run = unary_of<Sqrt, kFloats>(type);
    } else if (name == "shl" || name == "shr") {
      only({});
      operands({bits, bits, 32});
      i.run = name == "shl" ? BY_TYPE(shift_left, kIntegers | kUnsignedOnly)(type)
                            : BY_TYPE(shift_right, kIntegers)(type);
    } else if (name == "shf") {
      only({"l", "r", "wrap", "clamp"});
      operands({32, 32, 32, 32});
      i.how = contains(words_, "clamp");
      i.run = mode == "l" ? &funnel_shift<true> : &funnel_shift<false>;
    } else if (name == "bfe") {
      only({});
      operands({bits, bits, 32, 32});
      i.run = BY_TYPE(bit_field_extract, kIntegers | kWords)(type);
    } else if (name == "bfi") {
      only({});
      operands({bits, bits, bits, 32, 32});
      i.run = BY_TYPE(bit_field_insert, kIntegers | kWords | kUnsignedOnly)(type);
    } else if (name == "prmt") {
      only({});
      operands({32, 32, 32, 32});
      i.run = &permute_bytes;
    } else if (name == "lop3") {
      only({});
      operands({32, 32, 32, 32, 32});
      i.run = &lookup_3;
    } else if (name == "popc" || name == "clz") {
      only({});
      operands({32, bits});
      constexpr int kinds = kIntegers | kUnsignedOnly | kWords;
      i.run = name == "popc" ? unary_of<PopCount, kinds>(type) : unary_of<LeadingZeros, kinds>(type);
    } else if (name == "not" || name == "neg" || name == "abs" || name == "brev") {
      only({});
      operands({bits, bits});
      i.run = name == "not"   ? unary_of<Not, kIntegers>(type)
              : name == "neg" ? unary_of<Neg, kIntegers | kFloats>(type)
              : name == "abs" ? unary_of<Abs, kIntegers | kFloats>(type)
                              : unary_of<Reverse, kIntegers | kUnsignedOnly | kWords>(type);
    } else {
      static const std::set<std::string> known = {"min", "max", "and", "or", "xor", "rem", "copysign"};
      if (!known.count(name)) unknown();
      only({});
      operands({bits, bits, bits});
      i.run = name == "min"        ? binary_of<Min, kIntegers | kFloats>(type)
              : name == "max"      ? binary_of<Max, kIntegers | kFloats>(type)
              : name == "and"      ? binary_of<And, kIntegers>(type)
              : name == "or"       ? binary_of<Or, kIntegers>(type)
              : name == "xor"      ? binary_of<Xor, kIntegers>(type)
              : name == "rem"      ? binary_of<Rem, kIntegers>(type)
              : name == "copysign" ? binary_of<CopySign, kFloats>(type)
                                   : nullptr;
    }
  }

  static Run wide_of(Type type, bool add) {
    return by_type(type, [add](auto zero) -> Run {
      using T = decltype(zero);
      if constexpr (admits<T>(kIntegers) && sizeof(T) <= 4) return add ? &mad_wide<T> : &mul_wide<T>;
      return nullptr;
    });
  }

  static Run mad_of(Type type, bool high) {
    return by_type(type, [high](auto zero) -> Run {
      using T = decltype(zero);
      if constexpr (admits<T>(kIntegers)) return high ? &mad<MulHigh, T> : &mad<Mul, T>;
      return nullptr;
    });
  }

  void comparison(Instruction& i, Type type) {
    int how = -1;
    for (int k = 0; k < 18; ++k)
      if (words_[1] == kComparisons[k]) how = k;
    if (how < 0 || words_.size() > 4) unknown();
    if (words_.size() == 4) {
      how |= words_[2] == "and" ? kAnd : words_[2] == "or" ? kOr : words_[2] == "xor" ? kXor : 0;
      if (how < 32) unknown();
    }
    require_operands(words_.size());
    if (!given()[0].second.empty()) unknown();
    add(i, exact(given()[0], 1));
    add(i, exact(given()[1], type.bits));
    add(i, exact(given()[2], type.bits));
    if (how >= 32) add(i, exact(given()[3], 1));
    i.how = how;
    i.run = BY_TYPE(set_comparison, kIntegers | kFloats)(type);
  }

  void move_operation(Instruction& i, Type type) {
    only({});
    require_operands(2);
    const Text &to = given()[0], &from = given()[1];
    const bool packs = from.kind == Text::vector, unpacks = to.kind == Text::vector;
    if (packs || unpacks) {
      const auto& items = packs ? from.items : to.items;
      const int part = type.bits / static_cast<int>(items.size());
      if (packs) add(i, exact(to, type.bits));
      for (const Text& item : items) add(i, exact(item, part));
      if (unpacks) add(i, exact(from, type.bits));
      i.run =
          type.bits == 64 && part == 32   ? packs ? &pack<uint64_t, uint32_t> : &unpack<uint64_t, uint32_t>
          : type.bits == 64 && part == 16 ? packs ? &pack<uint64_t, uint16_t> : &unpack<uint64_t, uint16_t>
          : type.bits == 32 && part == 16 ? packs ? &pack<uint32_t, uint16_t> : &unpack<uint32_t, uint16_t>
                                          : nullptr;
      return;
    }
    add(i, exact(to, type.bits));
    add(i, exact(from, type.bits));
    i.run =
        type.kind == 'p' ? &move_predicate : BY_TYPE(move, kIntegers | kUnsignedOnly)(Type{'b', type.bits});
  }

  void address_conversion(Instruction& i) {
    require_operands(2);
    i.how = !contains(words_, "to");
    const std::string& space = words_[i.how ? 1 : 2];
    if (space == "shared" || space == "shared::cta" || space == "shared::cluster")
      i.offset = static_cast<int64_t>(kSharedWindow);
    else if (space == "local")
      i.offset = static_cast<int64_t>(kThreadWindow);
    else if (space == "param")
      i.offset = static_cast<int64_t>(kParameterWindow);
    else if (space != "global")
      unknown();
    for (size_t k = 0; k < 2; ++k) add(i, exact(given()[k], 64));
    i.run = &convert_address;
  }

  void address_mapping(Instruction& i, Type type) {
    only({"shared::cluster"});
    require_operands(3);
    i.how = words_.size() == 2;
    if (type.kind != 'u' || type.bits < 32 || (i.how && type.bits != 64)) unknown();
    add(i, exact(given()[0], type.bits));
    add(i, exact(given()[1], type.bits));
    add(i, exact(given()[2], 32));
    i.run = type.bits == 64 ? &map_address<uint64_t> : &map_address<uint32_t>;
  }

  void conversion(Instruction& i, Type from) {
    require_operands(2);
    const Type to = type_of(words_[words_.size() - 2]);
    if (!to.kind || words_.size() > 4) unknown();
    const auto floating = [](Type type) { return type.kind == 'f' || type.kind == 'h'; };
    const bool to_f = floating(to), from_f = floating(from);
    if (words_.size() == 4) {
      const std::map<std::string, int> roundings = {{"rn", kNearest},
                                                    {"rni", kNearest | kIntegral},
                                                    {"rzi", kZero | kIntegral},
                                                    {"rmi", kDown | kIntegral},
                                                    {"rpi", kUp | kIntegral}};
      const auto found = roundings.find(words_[1]);
      if (found == roundings.end()) unknown();
      i.how = found->second;
    }
    // A rounding must be given where there is one, and no other.
    const bool integral = i.how & kIntegral;
    const bool needs_integral = from_f && !to_f, needs_nearest = to_f && (!from_f || to.bits < from.bits);
    if (needs_integral != integral && !(from_f && to_f && to.bits == from.bits)) unknown();
    if (needs_nearest != (i.how == kNearest)) unknown();
    for (const size_t k : {0, 1}) {
      const Type type = k == 0 ? to : from;
      const Operand found = operand(given()[k], std::max(type.bits, 16));
      if (found.bits < type.bits || (floating(type) && found.bits != type.bits))
        fail("an operand has the wrong size");
      add(i, found);
    }
    if (to_f && to.bits == 16 && from.kind == 'f' && from.bits == 32) {
      i.run = to.kind == 'f' ? &convert<_Float16, float> : &convert<BFloat16, float>;
      return;
    }
    if (from.kind == 'f' && from.bits == 16 && to.kind == 'f' && to.bits == 32) {
      i.run = &convert<float, _Float16>;
      return;
    }
    i.run = by_type(to, [&](auto d) -> Run {
      using D = decltype(d);
      return by_type(from, [](auto s) -> Run {
        using S = decltype(s);
        return &convert<D, S>;
      });
    });
  }

  void order_and_space(Instruction& i, bool is_atomic) {
    static const std::set<std::string> hints = {"ca",  "cg",  "cs",      "lu", "wb", "wt", "gpu",
                                                "sys", "cta", "cluster", "v2", "v4", "v8", "weak"};
    if (is_atomic) i.order = Order::relaxed;
    for (size_t k = 1; k + 1 < words_.size(); ++k) {
      const std::string& word = words_[k];
      const std::map<std::string, Space> spaces = {
          {"global", Space::global},           {"shared", Space::shared},     {"shared::cta", Space::shared},
          {"shared::cluster", Space::cluster}, {"local", Space::thread},      {"param", Space::thread},
          {"param::entry", Space::thread},     {"param::func", Space::thread}};
      if (const auto found = spaces.find(word); found != spaces.end())
        i.space = found->second;
      else if (word == "relaxed" || word == "volatile" || word == "cv")
        i.order = Order::relaxed;
      else if (word == "acquire")
        i.order = Order::acquire;
      else if (word == "release")
        i.order = Order::release;
      else if (word == "acq_rel")
        i.order = Order::acq_rel;
      else if (word == "nc")
        i.order = Order::constant;
      else if (!hints.count(word) && word.rfind("L1::", 0) != 0 && word.rfind("L2::", 0) != 0 &&
               !(is_atomic &&
                 std::find(std::begin(kAtomics), std::end(kAtomics), word) != std::end(kAtomics)))
        unknown();
    }
    i.block_scope = contains(words_, "cta") || i.space == Space::shared;
    for (const unsigned count : {2, 4, 8})
      if (contains(words_, ("v" + std::to_string(count)).c_str())) i.vector = static_cast<uint8_t>(count);
  }

  void memory(Instruction& i, Type type, bool is_store) {
    order_and_space(i, false);
    require_operands(2);
    i.item = static_cast<uint8_t>(type.bits / 8);
    const Text &value = given()[is_store ? 1 : 0], &address = given()[is_store ? 0 : 1];
    const std::vector<Text> items = value.kind == Text::vector ? value.items : std::vector<Text>{value};
    if (items.size() != i.vector || i.vector * i.item > 32) fail("the number of values does not fit");
    for (const Text& item : items) {
      const Operand found = operand(item, std::max(type.bits, 16));
      if (found.bits < type.bits) fail("a value has the wrong size");
      add(i, found);
    }
    add_address(i, address);
    // bits are moved, so floats are like unsigned integers
    const Type moved{type.kind == 's' ? 's' : 'u', type.bits};
    i.run = by_type(moved, [=](auto zero) -> Run {
      using T = decltype(zero);
      return is_store ? &store<T> : &load<T>;
    });
  }

  void atomic_operation(Instruction& i, Type type, bool wanted) {
    order_and_space(i, true);
    i.item = static_cast<uint8_t>(type.bits / 8);
    int how = -1;
    for (int k = 0; k < 10; ++k)
      if (contains(words_, kAtomics[k])) how = k;
    if (how < 0) unknown();
    const size_t values = how == 7 ? 2 : 1;
    require_operands(values + 1 + wanted);
    i.how = how | (wanted ? 16 : 0);
    size_t k = 0;
    if (wanted) add(i, exact(given()[k++], type.bits));
    const Text& address = given()[k++];
    for (size_t n = 0; n < values; ++n) add(i, exact(given()[k++], type.bits));
    add_address(i, address);
    i.run = by_type(type, [](auto zero) -> Run {
      using T = decltype(zero);
      if constexpr (sizeof(T) >= 4) return &atomic<T>;
      return nullptr;
    });
  }

  void control(Instruction& i, Type type) {
    const std::string& name = words_[0];
    if (name == "bra") {
      only({"uni"}, 0);
      require_operands(1);
      i.flow = Flow::branch;
    } else if (name == "ret" || name == "exit") {
      i.flow = name == "ret" ? Flow::leave : Flow::finish;
    } else if (name == "call") {
      call(i);
    } else if (name == "bar" && words_.at(1) == "warp") {
      require_operands(1);
      i.flow = Flow::collective;
      i.names_members = true;
      add(i, exact(given()[0], 32));
      i.run = &nothing;
    } else if (name == "barrier" && words_.at(1) == "cluster") {
      const bool arrives = contains(words_, "arrive");
      if (arrives)
        only({"cluster", "arrive", "release", "relaxed", "aligned"}, 0);
      else
        only({"cluster", "wait", "acquire", "aligned"}, 0);
      if (arrives == contains(words_, "wait")) unknown();
      require_operands(0);
      i.flow = arrives ? Flow::cluster_arrive : Flow::cluster_wait;
      i.order = contains(words_, "relaxed") ? Order::relaxed : arrives ? Order::release : Order::acquire;
    } else if (name == "bar" || name == "barrier") {
      only({"sync", "cta", "aligned"}, 0);
      if (!contains(words_, "sync") || given().size() > 1 || (given().size() == 1 && given()[0].word != "0"))
        unknown();
      i.flow = Flow::barrier;
    } else if (name == "membar" || name == "fence") {
      only({"gl", "cta", "cluster", "sys", "gpu", "acq_rel", "sc"}, 0);
      i.block_scope = contains(words_, "cta");
      i.run = &fence;
    } else if (name == "trap") {
      i.run = &trap;
    } else if (name == "nanosleep") {
      i.run = &nothing;
    } else {
      collective(i, type);
    }
  }

  void call(Instruction& i) {
    i.flow = Flow::call;
    std::vector<std::vector<Text>> lists;
    std::string callee;
    for (const Text& operand : given())
      if (operand.kind == Text::list)
        lists.push_back(operand.items);
      else
        callee = operand.word;
    const bool returns = given()[0].kind == Text::list;
    const Function& called = function(callee);
    const auto pass = [&](const std::vector<Text>& passed, const std::vector<Variable>& formal,
                          std::vector<Copy>& copies, bool back) {
      if (passed.size() != formal.size()) fail("the number of parameters does not fit");
      for (size_t k = 0; k < passed.size(); ++k) {
        const auto here = static_cast<uint32_t>(symbols_.at(function_->name + "/" + passed[k].word).second);
        const auto there = static_cast<uint32_t>(symbols_.at(callee + "/" + formal[k].name).second);
        copies.push_back({back ? there : here, back ? here : there, static_cast<uint32_t>(formal[k].size)});
      }
    };
    if (returns) pass(lists.at(0), called.results, i.results, true);
    if (lists.size() > returns) pass(lists[returns], called.parameters, i.arguments, false);
    calls_.push_back({kernel_->code.size(), callee});
  }

  void collective(Instruction& i, Type type) {
    const std::string& name = words_[0];
    i.flow = Flow::collective;
    if (name == "shfl") {
      only({"sync", "up", "down", "bfly", "idx"});
      require_operands(5);
      const std::string& mode = words_.at(2);
      i.names_members = true;
      i.how = mode == "up"     ? kShuffleUp
              : mode == "down" ? kShuffleDown
              : mode == "bfly" ? kButterfly
                               : kIndex;
      add(i, exact(given()[0], 32));
      if (!given()[0].second.empty()) add(i, register_of(given()[0].second));
      for (size_t k = 1; k < 5; ++k) add(i, exact(given()[k], 32));
      i.run = &shuffle;
    } else if (name == "vote") {
      only({"sync", "all", "any", "uni", "ballot"});
      require_operands(3);
      const std::string& mode = words_.at(2);
      i.names_members = true;
      i.how = mode == "ballot" ? kBallot : mode == "all" ? kAll : mode == "any" ? kAny : kUniform;
      add(i, exact(given()[0], mode == "ballot" ? 32 : 1));
      add(i, exact(given()[1], 1));
      add(i, exact(given()[2], 32));
      i.run = &vote;
    } else if (name == "match") {
      only({"any", "sync"});
      require_operands(3);
      i.names_members = true;
      add(i, exact(given()[0], 32));
      add(i, exact(given()[1], type.bits));
      add(i, exact(given()[2], 32));
      i.run = BY_TYPE(match_any, kIntegers | kUnsignedOnly | kWords)(type);
    } else if (name == "redux") {
      only({"sync", "add", "min", "max", "and", "or", "xor"});
      require_operands(3);
      i.names_members = true;
      for (const Text& text : given()) add(i, exact(text, 32));
      const std::string& mode = words_.at(2);
      const bool is_signed = type.kind == 's';
      if (type.kind == 'f') unknown();
      i.run = mode == "add"   ? &reduce<Add, uint32_t>
              : mode == "and" ? &reduce<And, uint32_t>
              : mode == "or"  ? &reduce<Or, uint32_t>
              : mode == "xor" ? &reduce<Xor, uint32_t>
              : mode == "min" ? is_signed ? &reduce<Min, int32_t> : &reduce<Min, uint32_t>
              : is_signed     ? &reduce<Max, int32_t>
                              : &reduce<Max, uint32_t>;
    } else {
      only({"sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "shared::cta"});
      require_operands(2);
      const bool is_store = name == "stmatrix";
      if (!contains(words_, "m8n8") || type.bits != 16) unknown();
      i.space = Space::shared;
      i.item = 16;
      i.how = contains(words_, "trans");
      i.vector = contains(words_, "x4") ? 4 : contains(words_, "x2") ? 2 : 1;
      const Text& values = given()[is_store ? 1 : 0];
      if (values.items.size() != i.vector) fail("the number of matrices does not fit");
      for (const Text& text : values.items) add(i, exact(text, 32));
      add_address(i, given()[is_store ? 0 : 1]);
      i.run = is_store ? &matrix<true> : &matrix<false>;
    }
  }

  const Module& module_;
  std::unique_ptr<Kernel> kernel_;
  std::vector<std::string> needed_;  // functions, in the order of their code
  std::map<std::string, uint32_t> begins_;
  std::vector<std::pair<size_t, std::string>> calls_;
  std::map<std::string, std::pair<Space, uint64_t>> symbols_;  // "function/name" or "/name"
  std::map<std::string, Operand> registers_;                   // "function/name"
  std::map<std::pair<uint64_t, int>, Operand> constants_;
  const Function* function_ = nullptr;
  const Statement* statement_ = nullptr;
  std::vector<std::string> words_;  // of the opcode
};

}  // namespace

std::unique_ptr<Kernel> assemble(const Module& module, const std::string& name) {
  return Assembler(module, name).take();
}

}  // namespace ptx
