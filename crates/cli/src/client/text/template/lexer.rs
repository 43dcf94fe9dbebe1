//! A template's text taken apart.

use super::Value;

/// A part of a template.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// Outside of actions.
    Text(String),
    /// `{{`
    Open,
    /// `}}`
    Close,
    /// A function or keyword.
    Word(String),
    /// `.` or `.A.B`
    Fields(Vec<String>),
    /// `.A.B` right behind a variable or a closing bracket.
    Joined(Vec<String>),
    /// `$` (an empty name) or `$x`.
    Variable(String),
    Literal(Value),
    Pipe,
    Comma,
    /// `:=` or `=`
    Assign,
    LeftBracket,
    RightBracket,
}

/// Takes a text apart.
pub(super) fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text;
    let mut trim = false;
    while !rest.is_empty() {
        let (before, action) = match rest.split_once("{{") {
            Some((before, action)) => (before, Some(action)),
            None => (rest, None),
        };
        let mut before = if trim { before.trim_start() } else { before };
        let Some(action) = action else {
            push_text(&mut tokens, before);
            break;
        };
        let left = action.strip_prefix('-').filter(|after| after.starts_with(char::is_whitespace));
        if left.is_some() {
            before = before.trim_end();
        }
        push_text(&mut tokens, before);
        let action = left.unwrap_or(action);
        if let Some(comment) = action.trim_start().strip_prefix("/*") {
            let (_, after) = comment.split_once("*/").ok_or("unclosed comment")?;
            let after = after.trim_start();
            trim = after.starts_with("-}}");
            rest = after.trim_start_matches('-').strip_prefix("}}").ok_or("comment ends before closing delimiter")?;
            continue;
        }
        tokens.push(Token::Open);
        let (length, trims) = inside(action, &mut tokens)?;
        tokens.push(Token::Close);
        trim = trims;
        rest = &action[length..];
    }
    Ok(tokens)
}

fn push_text(tokens: &mut Vec<Token>, text: &str) {
    if !text.is_empty() {
        tokens.push(Token::Text(text.to_owned()));
    }
}

/// Reads to behind `}}`; answers how far that is, and whether white space after it is trimmed.
fn inside(action: &str, tokens: &mut Vec<Token>) -> Result<(usize, bool), String> {
    let name = |text: &str| text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let mut at = 0;
    loop {
        let rest = &action[at..];
        let Some(c) = rest.chars().next() else { return Err("unclosed action".to_owned()) };
        if rest.starts_with("}}") {
            return Ok((at + 2, false));
        }
        if rest.starts_with("-}}") {
            return Ok((at + 3, true));
        }
        match c {
            c if c.is_whitespace() => at += c.len_utf8(),
            '|' | ',' | '(' | ')' | '=' => {
                tokens.push(match c {
                    '|' => Token::Pipe,
                    ',' => Token::Comma,
                    '(' => Token::LeftBracket,
                    ')' => Token::RightBracket,
                    _ => Token::Assign,
                });
                at += 1;
            }
            ':' if rest.starts_with(":=") => {
                tokens.push(Token::Assign);
                at += 2;
            }
            '"' | '`' => {
                let (value, length) = quoted(rest, c)?;
                tokens.push(Token::Literal(Value::Text(value)));
                at += length;
            }
            '.' => {
                let joined = at > 0
                    && !action[..at].ends_with(char::is_whitespace)
                    && matches!(tokens.last(), Some(Token::Variable(_) | Token::RightBracket));
                let mut fields = Vec::new();
                let mut length = 0;
                while rest[length..].starts_with('.') {
                    let end = name(&rest[length + 1..]);
                    if end == 0 {
                        length += 1;
                        break;
                    }
                    fields.push(rest[length + 1..length + 1 + end].to_owned());
                    length += 1 + end;
                }
                tokens.push(if joined { Token::Joined(fields) } else { Token::Fields(fields) });
                at += length;
            }
            '$' => {
                let end = name(&rest[1..]);
                tokens.push(Token::Variable(rest[1..1 + end].to_owned()));
                at += 1 + end;
            }
            c if c.is_ascii_digit() || c == '-' || c == '+' => {
                let end = rest[1..].find(|c: char| !c.is_ascii_digit() && c != '.').map_or(rest.len(), |end| end + 1);
                let number = &rest[..end];
                let value: Value = serde_json::from_str(number.trim_start_matches('+'))
                    .map_err(|_| format!("bad number syntax: {number:?}"))?;
                tokens.push(Token::Literal(value));
                at += end;
            }
            c if c.is_alphabetic() || c == '_' => {
                let word = &rest[..name(rest)];
                tokens.push(match word {
                    "true" | "false" => Token::Literal(Value::Bool(word == "true")),
                    "nil" => Token::Literal(Value::Null),
                    word => Token::Word(word.to_owned()),
                });
                at += word.len();
            }
            c => return Err(format!("unexpected {c:?} in command")),
        }
    }
}

/// A text in quotes; answers it and its length with them.
fn quoted(text: &str, quote: char) -> Result<(String, usize), String> {
    let mut value = String::new();
    let mut escaped = false;
    for (index, c) in text.char_indices().skip(1) {
        match c {
            c if escaped => {
                value.push(match c {
                    'n' => '\n',
                    't' => '\t',
                    'r' => '\r',
                    c => c,
                });
                escaped = false;
            }
            '\\' if quote == '"' => escaped = true,
            c if c == quote => return Ok((value, index + 1)),
            c => value.push(c),
        }
    }
    Err("unterminated quoted string".to_owned())
}
