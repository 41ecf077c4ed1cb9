//! Asking before something is destroyed.
//!
//! What destroys takes a [`Confirmed`], and the only way to one is through the operator: typed, or given
//! as `--yes`.

use std::io::{BufRead, Write};

use crate::error::{Code, Error, Result};

/// Proof that the operator has agreed.
#[derive(Debug)]
pub(super) struct Confirmed(());

/// Asks for `word`, unless `--yes` was given.
///
/// # Errors
/// `Cancelled` for any other answer, or none.
pub(super) async fn ask(question: String, word: &str, yes: bool) -> Result<Confirmed> {
    if yes {
        return Ok(Confirmed(()));
    }
    let expected = word.to_owned();
    // A terminal is read for as long as its owner thinks.
    tokio::task::spawn_blocking(move || {
        answer(&question, &expected, &mut std::io::stdin().lock(), &mut std::io::stderr().lock())
    })
    .await
    .map_err(|e| Error::internal("The question ended without an answer").caused_by(e))?
}

fn answer(
    question: &str,
    word: &str,
    input: &mut impl BufRead,
    output: &mut impl Write,
) -> Result<Confirmed> {
    let failed =
        |e: std::io::Error| Error::new(Code::Cancelled, "Nothing was done: could not ask").caused_by(e);
    write!(output, "{question} ").and_then(|()| output.flush()).map_err(failed)?;
    let mut line = String::new();
    input.read_line(&mut line).map_err(failed)?;
    if line.trim() == word {
        Ok(Confirmed(()))
    } else {
        Err(Error::new(Code::Cancelled, format!("Nothing was done: the answer was not '{word}'")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_word_agrees() {
        let mut shown = Vec::new();
        assert!(answer("Discard?", "site-a", &mut &b"site-a\n"[..], &mut shown).is_ok());
        assert_eq!(shown, b"Discard? ");
        for other in [&b"yes\n"[..], b"site-b\n", b"SITE-A\n", b""] {
            let refused = answer("Discard?", "site-a", &mut &*other, &mut Vec::new()).unwrap_err();
            assert_eq!(refused.code(), Code::Cancelled);
        }
    }
}
