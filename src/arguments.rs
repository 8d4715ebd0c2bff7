//! The words of the command line, before they are parsed.

use std::ffi::OsString;

/// The words, with a negative number joined to the flag before it, `--eps -1e-3` as `--eps=-1e-3`: what begins with a
/// dash would be read as a flag.
pub(crate) fn joined(words: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut joined: Vec<OsString> = Vec::new();
    for word in words {
        match joined.last_mut() {
            Some(flag) if is_flag(flag) && is_negative(&word) => {
                flag.push("=");
                flag.push(word);
            }
            _ => joined.push(word),
        }
    }
    joined
}

fn is_flag(word: &OsString) -> bool {
    word.to_str()
        .is_some_and(|word| word.len() > 2 && word.starts_with("--") && !word.contains('='))
}

/// Whether the word is a number with a minus sign, or several with commas between.
fn is_negative(word: &OsString) -> bool {
    let is_number = |word: &str| word.trim().parse::<f64>().is_ok();
    word.to_str().is_some_and(|word| word.starts_with('-') && word.split(',').all(is_number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negative_numbers_belong_to_the_flag_before_them() {
        for (words, expected) in [
            ("tune --eps -1e-3 --lr 2", "tune --eps=-1e-3 --lr 2"),
            ("x --fractions -1,2 -V", "x --fractions=-1,2 -V"),
            ("x --a=1 -2 -- -3 --b --c", "x --a=1 -2 -- -3 --b --c"),
        ] {
            let joined = joined(words.split(' ').map(OsString::from));
            let expected: Vec<OsString> = expected.split(' ').map(OsString::from).collect();
            assert_eq!(joined, expected);
        }
    }
}
