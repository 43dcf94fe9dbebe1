//! The templates of `--format`: the part of Go's text/template that people use with docker, on JSON.
//!
//! Known: text, `{{.A.B}}`, `{{if}} {{else if}} {{else}} {{range}} {{with}} {{end}}`, variables, pipes, brackets, comments, trimming,
//! and the functions in `call`. Not known: `define`, `template`, `block`, methods other than `.Label`.
//!
//! G1  A template is bounded: its depth by `DEPTH_MAX`, its work by what the rows hold, since nothing loops but `range`.
//! G2  What it prints for values that Go types (a null list is `[]`, a null map `map[]`) is decided by the member's name, since
//!     JSON does not tell.

use super::super::failure::Failure;
use super::value::Value;
use super::{format, units};
use lexer::Token;

mod lexer;

/// Brackets and blocks within each other.
const DEPTH_MAX: usize = 64;
/// A member of this name, hidden from `json`, holds what `.Label` looks up.
pub(crate) const LABELS: &str = "\0labels";
/// Members that Go knows as maps: a missing key is no mistake, and null is shown as one.
const MAPS: &[&str] = &[
    "Annotations",
    "Attributes",
    "Config",
    "Containers",
    "Data",
    "DriverOpts",
    "ExposedPorts",
    "Labels",
    "Networks",
    "Options",
    "Ports",
    "StorageOpt",
    "Sysctls",
    "Tmpfs",
    "Volumes",
];
/// Members that Go knows as pointers: null is shown as such.
const POINTERS: &[&str] =
    &["Health", "Healthcheck", "IPAMConfig", "Init", "OomKillDisable", "PidsLimit", "StopTimeout", "UsageData"];

/// A template that was read.
#[derive(Debug)]
pub(crate) struct Template {
    nodes: Vec<Node>,
}

#[derive(Debug)]
enum Node {
    Text(String),
    Print(Pipeline),
    Assign(String, Pipeline),
    If(Pipeline, Vec<Node>, Vec<Node>),
    With(Pipeline, Vec<Node>, Vec<Node>),
    /// With the names of the variables for key and item.
    Range(Option<String>, Option<String>, Pipeline, Vec<Node>, Vec<Node>),
}

type Pipeline = Vec<Vec<Operand>>;

#[derive(Debug)]
enum Operand {
    Literal(Value),
    Function(String),
    /// `.A.B`
    Fields(Vec<String>),
    /// `$x.A`
    Variable(String, Vec<String>),
    /// `(…).A`
    Group(Pipeline, Vec<String>),
}

/// A value, and how it is shown should it be null.
#[derive(Debug, Clone)]
struct Item {
    value: Value,
    null: &'static str,
}

impl Item {
    fn of(value: Value) -> Item {
        Item { value, null: "<nil>" }
    }

    const MISSING: Item = Item { value: Value::Null, null: "<no value>" };

    fn text(&self) -> String {
        match &self.value {
            Value::Null => self.null.to_owned(),
            value => go_text(value),
        }
    }
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// `Template` with the place and what is wrong there.
    pub(crate) fn parse(text: &str) -> Result<Template, Failure> {
        let wrong = |reason: String| Failure::Template { reason };
        let tokens = lexer::tokens(text).map_err(wrong)?;
        let mut parser = Parser { tokens, at: 0, depth: 0 };
        let nodes = parser.block(true).map_err(wrong)?;
        Ok(Template { nodes })
    }

    /// Renders a row of a list.
    ///
    /// # Errors
    /// `Template` for a member that the row does not have.
    pub(crate) fn strict(&self, row: &Value) -> Result<String, Failure> {
        self.render(row, Mode::Rows)
    }

    /// Renders an object that was inspected.
    ///
    /// # Errors
    /// `Template` for a member that no object of its kind has.
    pub(crate) fn object(&self, object: &Value) -> Result<String, Failure> {
        self.render(object, Mode::Objects)
    }

    /// Renders the head of a table, in which functions leave the heads alone.
    ///
    /// # Errors
    /// `Template` as with `strict`.
    pub(crate) fn head(&self, heads: &Value) -> Result<String, Failure> {
        self.render(heads, Mode::Heads)
    }

    fn render(&self, value: &Value, mode: Mode) -> Result<String, Failure> {
        let mut run = Run { mode, variables: vec![(String::new(), Item::of(value.clone()))], out: String::new() };
        run.nodes(&self.nodes, &Item::of(value.clone())).map_err(|reason| Failure::Template { reason })?;
        Ok(run.out)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Rows,
    Objects,
    Heads,
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn deeper(&mut self) -> Result<(), String> {
        self.depth += 1;
        if self.depth > DEPTH_MAX { Err("nested too deeply".to_owned()) } else { Ok(()) }
    }

    /// Nodes up to `else` or `end`, which are left in place, or to the end of the text.
    fn block(&mut self, outermost: bool) -> Result<Vec<Node>, String> {
        self.deeper()?;
        let mut nodes = Vec::new();
        loop {
            match self.next() {
                None if outermost => break,
                None => return Err("unexpected EOF: {{end}} is missing".to_owned()),
                Some(Token::Text(text)) => nodes.push(Node::Text(text)),
                Some(Token::Open) => {
                    let keyword = match self.peek() {
                        Some(Token::Word(word)) => word.clone(),
                        _ => String::new(),
                    };
                    match keyword.as_str() {
                        "else" | "end" if outermost => return Err(format!("unexpected {{{{{keyword}}}}}")),
                        "else" | "end" => {
                            self.at -= 1;
                            break;
                        }
                        "if" | "with" | "range" => {
                            self.at += 1;
                            nodes.push(self.branch(&keyword)?);
                        }
                        "define" | "template" | "block" | "break" | "continue" => {
                            return Err(format!("{{{{{keyword}}}}} is not supported"));
                        }
                        _ => {
                            if let (Some(Token::Variable(name)), Some(Token::Assign)) =
                                (self.peek().cloned(), self.tokens.get(self.at + 1))
                            {
                                self.at += 2;
                                let pipeline = self.pipeline()?;
                                nodes.push(Node::Assign(name, pipeline));
                            } else if self.peek() == Some(&Token::Close) {
                                return Err("missing value for command".to_owned());
                            } else {
                                nodes.push(Node::Print(self.pipeline()?));
                            }
                            self.close()?;
                        }
                    }
                }
                Some(token) => return Err(format!("unexpected {token:?}")),
            }
        }
        self.depth -= 1;
        Ok(nodes)
    }

    fn close(&mut self) -> Result<(), String> {
        match self.next() {
            Some(Token::Close) => Ok(()),
            Some(token) => Err(format!("unexpected {token:?} in command")),
            None => Err("unclosed action".to_owned()),
        }
    }

    /// What follows `if`, `with` or `range`, to its `end`.
    fn branch(&mut self, keyword: &str) -> Result<Node, String> {
        let mut names = Vec::new();
        if keyword == "range" {
            let start = self.at;
            while let Some(Token::Variable(name)) = self.peek().cloned() {
                self.at += 1;
                names.push(name);
                match self.peek() {
                    Some(Token::Comma) => self.at += 1,
                    _ => break,
                }
            }
            if !names.is_empty() && self.peek() == Some(&Token::Assign) {
                self.at += 1;
            } else {
                names.clear();
                self.at = start;
            }
        }
        let pipeline = self.pipeline()?;
        self.close()?;
        let then = self.block(false)?;
        self.at += 1;
        let otherwise = match self.next() {
            Some(Token::Word(word)) if word == "else" => match self.peek().cloned() {
                Some(Token::Word(next)) if next == "if" || next == "with" => {
                    self.at += 1;
                    self.deeper()?;
                    let node = self.branch(&next)?;
                    self.depth -= 1;
                    return Ok(node_of(keyword, names, pipeline, then, vec![node]));
                }
                _ => {
                    self.close()?;
                    let otherwise = self.block(false)?;
                    self.at += 1;
                    match self.next() {
                        Some(Token::Word(word)) if word == "end" => otherwise,
                        _ => return Err("expected {{end}}".to_owned()),
                    }
                }
            },
            _ => Vec::new(),
        };
        self.close()?;
        Ok(node_of(keyword, names, pipeline, then, otherwise))
    }

    fn pipeline(&mut self) -> Result<Pipeline, String> {
        self.deeper()?;
        let mut commands = vec![Vec::new()];
        loop {
            let operand = match self.peek().cloned() {
                None | Some(Token::Close | Token::RightBracket) => break,
                Some(Token::Pipe) => {
                    if commands.last().is_none_or(Vec::is_empty) {
                        return Err("missing value for command".to_owned());
                    }
                    self.at += 1;
                    commands.push(Vec::new());
                    continue;
                }
                Some(Token::Literal(value)) => Operand::Literal(value),
                Some(Token::Fields(fields)) => Operand::Fields(fields),
                Some(Token::Variable(name)) => {
                    self.at += 1;
                    let fields = self.fields_after();
                    commands.last_mut().expect("never empty").push(Operand::Variable(name, fields));
                    continue;
                }
                Some(Token::Word(word)) => Operand::Function(word),
                Some(Token::LeftBracket) => {
                    self.at += 1;
                    let inner = self.pipeline()?;
                    match self.next() {
                        Some(Token::RightBracket) => {}
                        _ => return Err("unclosed left paren".to_owned()),
                    }
                    let fields = self.fields_after();
                    commands.last_mut().expect("never empty").push(Operand::Group(inner, fields));
                    continue;
                }
                Some(token) => return Err(format!("unexpected {token:?} in operand")),
            };
            self.at += 1;
            commands.last_mut().expect("never empty").push(operand);
        }
        if commands.last().is_none_or(Vec::is_empty) {
            return Err("missing value for command".to_owned());
        }
        self.depth -= 1;
        Ok(commands)
    }

    /// `.A.B` right behind a variable or a bracket.
    fn fields_after(&mut self) -> Vec<String> {
        match self.peek().cloned() {
            Some(Token::Joined(fields)) => {
                self.at += 1;
                fields
            }
            _ => Vec::new(),
        }
    }
}

fn node_of(keyword: &str, names: Vec<String>, pipeline: Pipeline, then: Vec<Node>, otherwise: Vec<Node>) -> Node {
    match keyword {
        "if" => Node::If(pipeline, then, otherwise),
        "with" => Node::With(pipeline, then, otherwise),
        _ => {
            let mut names = names.into_iter();
            let (first, second) = (names.next(), names.next());
            // One variable is the item, two are key and item.
            let (key, item) = if second.is_some() { (first, second) } else { (None, first) };
            Node::Range(key, item, pipeline, then, otherwise)
        }
    }
}

struct Run {
    mode: Mode,
    variables: Vec<(String, Item)>,
    out: String,
}

impl Run {
    fn nodes(&mut self, nodes: &[Node], dot: &Item) -> Result<(), String> {
        for node in nodes {
            match node {
                Node::Text(text) => self.out.push_str(text),
                Node::Print(pipeline) => {
                    let item = self.pipeline(pipeline, dot)?;
                    self.out.push_str(&item.text());
                }
                Node::Assign(name, pipeline) => {
                    let item = self.pipeline(pipeline, dot)?;
                    match self.variables.iter_mut().rev().find(|(known, _)| known == name) {
                        Some(known) if !name.is_empty() => known.1 = item,
                        _ => self.variables.push((name.clone(), item)),
                    }
                }
                Node::If(pipeline, then, otherwise) => {
                    let condition = self.pipeline(pipeline, dot)?;
                    let chosen = if truth(&condition.value) { then } else { otherwise };
                    self.scoped(chosen, dot)?;
                }
                Node::With(pipeline, then, otherwise) => {
                    let item = self.pipeline(pipeline, dot)?;
                    if truth(&item.value) { self.scoped(then, &item)? } else { self.scoped(otherwise, dot)? }
                }
                Node::Range(key, name, pipeline, then, otherwise) => {
                    let over = self.pipeline(pipeline, dot)?;
                    let mut pairs: Vec<(Value, Value)> = match over.value {
                        Value::List(items) => {
                            items.into_iter().zip(0_i64..).map(|(item, index)| (index.into(), item)).collect()
                        }
                        Value::Object(members) => members
                            .into_iter()
                            .filter(|(key, _)| key != LABELS)
                            .map(|(key, value)| (key.into(), value))
                            .collect(),
                        Value::Null => Vec::new(),
                        other => return Err(format!("range can't iterate over {}", go_text(&other))),
                    };
                    // Go visits the keys of a map in order.
                    if pairs.iter().all(|(key, _)| matches!(key, Value::Text(_))) {
                        pairs.sort_by(|a, b| a.0.text().cmp(b.0.text()));
                    }
                    if pairs.is_empty() {
                        self.scoped(otherwise, dot)?;
                    }
                    for (index, value) in pairs {
                        let known = self.variables.len();
                        if let Some(key) = key {
                            self.variables.push((key.clone(), Item::of(index)));
                        }
                        let item = Item::of(value);
                        if let Some(name) = name {
                            self.variables.push((name.clone(), item.clone()));
                        }
                        self.nodes(then, &item)?;
                        self.variables.truncate(known);
                    }
                }
            }
        }
        Ok(())
    }

    fn scoped(&mut self, nodes: &[Node], dot: &Item) -> Result<(), String> {
        let known = self.variables.len();
        self.nodes(nodes, dot)?;
        self.variables.truncate(known);
        Ok(())
    }

    fn pipeline(&mut self, pipeline: &Pipeline, dot: &Item) -> Result<Item, String> {
        let mut last: Option<Item> = None;
        for command in pipeline {
            last = Some(self.command(command, last.take(), dot)?);
        }
        Ok(last.unwrap_or(Item::MISSING))
    }

    fn command(&mut self, command: &[Operand], last: Option<Item>, dot: &Item) -> Result<Item, String> {
        let (first, rest) = command.split_first().ok_or("missing value for command")?;
        match first {
            Operand::Function(name) => {
                // `and` and `or` stop at the first argument that decides.
                let mut arguments = Vec::new();
                for operand in rest {
                    let item = self.operand(operand, dot)?;
                    let decides = match name.as_str() {
                        "and" => !truth(&item.value),
                        "or" => truth(&item.value),
                        _ => false,
                    };
                    if decides {
                        return Ok(item);
                    }
                    arguments.push(item);
                }
                arguments.extend(last);
                if self.mode == Mode::Heads {
                    return Ok(arguments.pop().unwrap_or_else(|| Item::of("".into())));
                }
                call(name, arguments)
            }
            Operand::Fields(fields) if !rest.is_empty() || last.is_some() => {
                let (method, path) = fields.split_last().ok_or("can't give an argument to .")?;
                if method != "Label" || self.mode == Mode::Objects {
                    return Err(format!("{method} is not a method but has arguments"));
                }
                let key = match rest.first() {
                    Some(operand) => self.operand(operand, dot)?.text(),
                    None => last.map(|item| item.text()).unwrap_or_default(),
                };
                if self.mode == Mode::Heads {
                    return Ok(Item::of(key.rsplit('.').next().unwrap_or_default().replace(['-', '_'], " ").into()));
                }
                let owner = path.iter().try_fold(&dot.value, |value, name| value.get(name));
                let label = owner.and_then(|owner| owner.get(LABELS)).and_then(|labels| {
                    labels.members().iter().find(|(name, _)| *name == key).map(|(_, value)| value.clone())
                });
                Ok(Item::of(label.unwrap_or_else(|| "".into())))
            }
            operand => match last {
                Some(_) => Err("can't give an argument to a value".to_owned()),
                None if !rest.is_empty() => Err("can't give an argument to a value".to_owned()),
                None => self.operand(operand, dot),
            },
        }
    }

    fn operand(&mut self, operand: &Operand, dot: &Item) -> Result<Item, String> {
        match operand {
            Operand::Literal(value) => Ok(Item::of(value.clone())),
            Operand::Fields(fields) => self.walk(dot, fields),
            Operand::Variable(name, fields) => {
                let known = self.variables.iter().rev().find(|(known, _)| known == name);
                let item =
                    known.map(|(_, item)| item.clone()).ok_or_else(|| format!("undefined variable \"${name}\""))?;
                self.walk(&item, fields)
            }
            Operand::Group(pipeline, fields) => {
                let item = self.pipeline(pipeline, dot)?;
                self.walk(&item, fields)
            }
            Operand::Function(name) => {
                let nothing = self.mode == Mode::Heads;
                if nothing { Ok(Item::of("".into())) } else { call(name, Vec::new()) }
            }
        }
    }

    fn walk(&self, from: &Item, fields: &[String]) -> Result<Item, String> {
        let mut item = from.clone();
        let (mut parent, mut grandparent) = ("", "");
        for field in fields {
            let found = match &item.value {
                Value::Object(_) => item.value.get(field).cloned(),
                _ => None,
            };
            item = match found {
                Some(value) => {
                    let null = match field.as_str() {
                        field if is_map(field, parent) => "map[]",
                        field if POINTERS.contains(&field) => "<nil>",
                        _ if self.mode == Mode::Objects && !is_map(parent, grandparent) => "[]",
                        _ => "<nil>",
                    };
                    Item { value, null }
                }
                None => {
                    let is_map = is_map(parent, grandparent) || is_map(field, parent);
                    let forgiven = match self.mode {
                        Mode::Heads => true,
                        Mode::Objects => is_map || item.null == "<no value>" || POINTERS.contains(&field.as_str()),
                        Mode::Rows => false,
                    };
                    if !forgiven {
                        return Err(format!("can't evaluate field {field}: there is no such member"));
                    }
                    Item::MISSING
                }
            };
            (parent, grandparent) = (field, parent);
        }
        Ok(item)
    }
}

/// Whether Go knows a member as a map. A `Config` is one only of a log driver.
fn is_map(name: &str, parent: &str) -> bool {
    MAPS.contains(&name) && (name != "Config" || parent == "LogConfig")
}

fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::Text(text) => !text.is_empty(),
        Value::List(items) => !items.is_empty(),
        Value::Object(members) => !members.is_empty(),
    }
}

/// As Go's `%v` shows it.
fn go_text(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.to_string(),
        Value::Text(text) => text.clone(),
        Value::List(items) => {
            let items: Vec<String> = items.iter().map(go_text).collect();
            format!("[{}]", items.join(" "))
        }
        Value::Object(members) => {
            let mut shown: Vec<_> = members.iter().filter(|(key, _)| key != LABELS).collect();
            shown.sort_by(|a, b| a.0.cmp(&b.0));
            let shown: Vec<String> =
                shown.into_iter().map(|(key, value)| format!("{key}:{}", go_text(value))).collect();
            format!("map[{}]", shown.join(" "))
        }
    }
}

fn compare(a: &Value, b: &Value) -> Option<std::cmp::Ordering> {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64().zip(b.as_f64()).and_then(|(a, b)| a.partial_cmp(&b)),
        (Value::Text(a), Value::Text(b)) => Some(a.cmp(b)),
        (a, b) if a == b => Some(std::cmp::Ordering::Equal),
        _ => None,
    }
}

fn call(name: &str, arguments: Vec<Item>) -> Result<Item, String> {
    use std::cmp::Ordering;
    let text = |index: usize| arguments.get(index).map(Item::text).unwrap_or_default();
    let value = |index: usize| arguments.get(index).map_or(&Value::Null, |item| &item.value);
    let number = |index: usize| usize::try_from(value(index).number()).unwrap_or_default().min(1 << 16);
    let need = |count: usize| {
        if arguments.len() < count {
            Err(format!("wrong number of args for {name}: want at least {count} got {}", arguments.len()))
        } else {
            Ok(())
        }
    };
    let ordered = |accepts: fn(Ordering) -> bool| match compare(value(0), value(1)) {
        Some(ordering) => Ok(Item::of(Value::Bool(accepts(ordering)))),
        None => Err(format!("incompatible types for comparison in {name}")),
    };
    need(match name {
        "and" | "or" | "print" | "println" => 0,
        "index" | "eq" | "ne" | "lt" | "le" | "gt" | "ge" | "join" | "split" | "truncate" => 2,
        "pad" => 3,
        _ => 1,
    })?;
    let join = |separator: &str| arguments.iter().map(Item::text).collect::<Vec<_>>().join(separator);
    Ok(match name {
        "json" => Item::of(visible(value(0)).compact().into()),
        "join" => {
            let parts: Vec<String> = value(0).items().iter().map(go_text).collect();
            Item::of(parts.join(&text(1)).into())
        }
        "split" => Item::of(Value::List(text(0).split(text(1).as_str()).map(Value::from).collect())),
        "lower" => Item::of(text(0).to_lowercase().into()),
        "upper" => Item::of(text(0).to_uppercase().into()),
        "title" => {
            let mut first = true;
            let text = text(0);
            let titled = text.chars().map(|c| {
                let up = first;
                first = c.is_whitespace();
                if up { c.to_ascii_uppercase() } else { c }
            });
            Item::of(titled.collect::<String>().into())
        }
        "pad" if text(0).is_empty() => Item::of(text(0).into()),
        "pad" => Item::of(format!("{}{}{}", " ".repeat(number(1)), text(0), " ".repeat(number(2))).into()),
        "truncate" => Item::of(text(0).chars().take(number(1)).collect::<String>().into()),
        "print" => Item::of(join("").into()),
        "println" => Item::of((join(" ") + "\n").into()),
        "printf" => Item::of(printf(&text(0), &arguments[1..]).into()),
        "len" => {
            let length = match value(0) {
                Value::Text(text) => text.len(),
                Value::List(items) => items.len(),
                Value::Object(members) => members.len(),
                Value::Null => 0,
                other => return Err(format!("len of {}", go_text(other))),
            };
            Item::of(i64::try_from(length).unwrap_or(i64::MAX).into())
        }
        "index" => {
            let mut item = arguments[0].clone();
            for key in &arguments[1..] {
                let found = match (&item.value, &key.value) {
                    (Value::Object(members), Value::Text(key)) => {
                        members.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone())
                    }
                    (Value::List(items), key @ Value::Number(_)) => {
                        let found = usize::try_from(key.number()).ok().and_then(|index| items.get(index).cloned());
                        Some(
                            found
                                .ok_or_else(|| format!("error calling index: index out of range: {}", key.number()))?,
                        )
                    }
                    (Value::Null, _) => None,
                    _ => return Err("error calling index: cannot index that".to_owned()),
                };
                // A missing key of a map of texts is the empty text in Go.
                item = found.map_or(Item { value: Value::Null, null: "" }, Item::of);
            }
            item
        }
        "eq" => Item::of(Value::Bool(
            arguments[1..].iter().any(|other| compare(value(0), &other.value) == Some(Ordering::Equal)),
        )),
        "ne" => Item::of(Value::Bool(compare(value(0), value(1)) != Some(Ordering::Equal))),
        "lt" => ordered(Ordering::is_lt)?,
        "le" => ordered(Ordering::is_le)?,
        "gt" => ordered(Ordering::is_gt)?,
        "ge" => ordered(Ordering::is_ge)?,
        "not" => Item::of(Value::Bool(!truth(value(0)))),
        "and" | "or" => arguments.last().cloned().unwrap_or(Item::MISSING),
        "time" => {
            Item::of(units::parse_time(&text(0)).map_or_else(|| text(0), |(seconds, _)| units::go_time(seconds)).into())
        }
        _ => return Err(format!("function {name:?} not defined")),
    })
}

/// Without what templates do not show; a row's members in order of their names.
fn visible(value: &Value) -> Value {
    match value {
        Value::Object(members) if members.iter().any(|(key, _)| key == LABELS) => {
            let mut shown: Vec<_> = members.iter().filter(|(key, _)| key != LABELS).cloned().collect();
            shown.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(shown)
        }
        value => value.clone(),
    }
}

/// Go's verbs for what JSON holds: `%s %v %d %q %t %x`, with width, `-` and `0`.
fn printf(text: &str, arguments: &[Item]) -> String {
    let mut out = String::new();
    let mut arguments = arguments.iter();
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut flags = String::new();
        while let Some(flag) = rest.next_if(|c| c.is_ascii_digit() || ['-', '.', '+'].contains(c)) {
            flags.push(flag);
        }
        let Some(verb) = rest.next() else { break };
        if verb == '%' {
            out.push('%');
            continue;
        }
        let Some(item) = arguments.next() else {
            out.push_str(&format!("%!{verb}(MISSING)"));
            continue;
        };
        let shown = match verb {
            'q' => format::quote(&item.text()),
            'x' => format!("{:x}", item.value.number()),
            _ => item.text(),
        };
        let (left, digits) = match flags.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, flags.as_str()),
        };
        let zero = !left && digits.starts_with('0');
        let width: usize = digits.split('.').next().unwrap_or_default().parse().unwrap_or_default();
        let missing = width.min(1 << 12).saturating_sub(shown.chars().count());
        let padding = if zero { "0" } else { " " }.repeat(missing);
        if left {
            out.push_str(&shown)
        }
        out.push_str(&padding);
        if !left {
            out.push_str(&shown)
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(text: &str, value: &str) -> Result<String, String> {
        let value: Value = serde_json::from_str(value).expect("JSON");
        Template::parse(text).and_then(|template| template.object(&value)).map_err(|error| error.to_string())
    }

    const SAMPLE: &str = r#"{"Id":"x1","State":{"Status":"running","Pid":7,"Running":true,"Health":null},"Config":{"Env":["A=1","B=2"],
        "Labels":{"b":"2","a.c":"1"},"Entrypoint":null},"Mounts":[{"Source":"/a"},{"Source":"/b"}],"Labels":null}"#;

    #[test]
    fn templates_give_what_docker_gives() {
        for (template, expected) in [
            ("{{.Id}} {{.ID}}", "x1 x1"),
            ("{{.State.Status}}/{{.State.Pid}}", "running/7"),
            ("{{json .Config.Env}}", r#"["A=1","B=2"]"#),
            ("{{.Config.Env}} {{.Config.Entrypoint}} {{.State.Health}} {{.Labels}}", "[A=1 B=2] [] <nil> map[]"),
            ("{{.Config.Labels}}", "map[a.c:1 b:2]"),
            ("{{.Config.Labels.nope}}", "<no value>"),
            ("{{index .Config.Labels \"a.c\"}}-{{index .Config.Labels \"nope\"}}-{{index .Config.Env 1}}", "1--B=2"),
            ("{{range .Mounts}}{{.Source}};{{end}}", "/a;/b;"),
            ("{{range $i, $m := .Mounts}}{{$i}}={{$m.Source}} {{end}}", "0=/a 1=/b "),
            ("{{range $k, $v := .Config.Labels}}{{$k}}={{$v}},{{end}}", "a.c=1,b=2,"),
            ("{{range .Labels}}x{{else}}none{{end}}", "none"),
            ("{{if .State.Running}}up{{else}}down{{end}}", "up"),
            ("{{if eq .State.Status \"exited\"}}e{{else if gt .State.Pid 5}}r{{else}}?{{end}}", "r"),
            ("{{if and .State.Running (not .State.Health)}}y{{end}}", "y"),
            ("{{with .State}}{{.Pid}}{{end}}{{with .Labels}}x{{else}}-{{end}}", "7-"),
            (
                "{{join .Config.Env \",\"}} {{len .Mounts}} {{upper .Id}} {{.Id | printf \"%-4s|\"}}",
                "A=1,B=2 2 X1 x1  |",
            ),
            ("{{(index .Mounts 1).Source}}", "/b"),
            ("{{$x := .Id}}{{$x}}{{$.State.Pid}}", "x17"),
            ("a {{- .Id -}} b{{/* note */}}", "ax1b"),
            ("{{println .Id}}{{printf \"%q %03d\" .Id .State.Pid}}", "x1\n\"x1\" 007"),
            ("{{range split \"a,b\" \",\"}}<{{.}}>{{end}}", "<a><b>"),
            ("{{or .Labels .Id}}", "x1"),
        ] {
            assert_eq!(object(template, SAMPLE).as_deref(), Ok(expected), "{template}");
        }
    }

    #[test]
    fn what_is_no_template_is_refused_with_the_reason() {
        for (template, reason) in [
            ("{{.Nope}}", "can't evaluate field Nope"),
            ("{{.State.Nope}}", "can't evaluate field Nope"),
            ("{{.Config.Nope}}", "can't evaluate field Nope"),
            ("{{.Id", "unclosed action"),
            ("{{if .Id}}x", "{{end}} is missing"),
            ("{{end}}", "unexpected {{end}}"),
            ("{{nope .Id}}", "function \"nope\" not defined"),
            ("{{}}", "missing value"),
            ("{{index .Mounts 9}}", "out of range"),
            ("{{\"x}}", "unterminated"),
            ("{{template \"x\"}}", "not supported"),
            ("{{.Id | .Id}}", "has arguments"),
            ("{{$y}}", "undefined variable"),
        ] {
            let refused = object(template, SAMPLE).expect_err("no template");
            assert!(refused.contains(reason), "{template}: {refused}");
        }
        let deep = "{{".to_owned() + &"(".repeat(1000) + ".Id" + &")".repeat(1000) + "}}";
        assert!(object(&deep, SAMPLE).expect_err("too deep").contains("nested too deeply"));
    }

    #[test]
    fn rows_know_their_labels_by_name() {
        let row: Value = serde_json::from_str(r#"{"Names":"a","ID":"1","\u0000labels":{"x.y-z":"v"}}"#).expect("JSON");
        let template = Template::parse("{{.ID}} {{.Label \"x.y-z\"}}{{.Label \"none\"}}").expect("a template");
        assert_eq!(template.strict(&row).expect("it has them"), "1 v");
        assert_eq!(
            Template::parse("{{json .}}").expect("a template").strict(&row).expect("it has"),
            r#"{"ID":"1","Names":"a"}"#
        );
        let heads: Value = serde_json::from_str(r#"{"ID":"CONTAINER ID"}"#).expect("JSON");
        assert_eq!(template.head(&heads).expect("heads"), "CONTAINER ID y znone");
        assert!(Template::parse("{{.Nope}}").expect("a template").strict(&row).is_err());
    }
}
