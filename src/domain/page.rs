//! Pages of a list: their size, and where one begins. Lists go by keyset, so that the thousandth page costs what
//! the first did: a position is the sort key of the last row shown, never a number of rows to skip.
//! A page token is opaque and carries an HMAC (RFC 2104) over the position, the list's other arguments and the
//! caller, so that it works for the list it came from and for nobody else.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::Invalid;

/// The page size where none is asked for.
const PAGE_SIZE_DEFAULT: u64 = 50;
/// The largest page.
const PAGE_SIZE_MAX: u64 = 1000;
/// Bytes of the HMAC that a token carries.
const TAG_LENGTH: usize = 16;
/// The longest token that is looked at, in characters.
const TOKEN_LENGTH_MAX: usize = 256;

/// Where a page begins: after the row with this sort key and id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The row's first sort key: creation time in microseconds, or a sequence number.
    pub sort: i64,
    /// The row's id, empty where the first sort key is unique.
    pub id: String,
}

/// One page to read.
#[derive(Debug, Clone)]
pub struct PageRequest {
    pub size: u64,
    pub after: Option<Position>,
}

/// One page read: its rows, and the position after which the next begins, if there is one.
#[derive(Debug)]
pub struct Page<T> {
    pub rows: Vec<T>,
    pub next: Option<Position>,
}

/// The most bytes of rows on one page: gRPC clients refuse answers over 4 MiB unless told otherwise.
const PAGE_BYTES_MAX: usize = 2 << 20;

impl<T> Page<T> {
    /// Ends the page early where its rows would be too many bytes; the next page goes on after the last one kept.
    #[must_use]
    pub fn bounded(mut self, bytes: impl Fn(&T) -> usize, position: impl Fn(&T) -> Position) -> Self {
        let mut total = 0;
        let fitting = self.rows.iter().take_while(|row| {
            total += bytes(row);
            total <= PAGE_BYTES_MAX
        });
        let fitting = fitting.count().max(1);
        if fitting < self.rows.len() {
            self.rows.truncate(fitting);
            self.next = self.rows.last().map(position);
        }
        self
    }
}

/// Reads a page size: 0 stands for 50, more than 1000 for 1000.
///
/// # Errors
/// Refuses negative sizes.
pub fn parse_page_size(size: i32) -> Result<u64, Invalid> {
    match u64::try_from(size) {
        Ok(0) => Ok(PAGE_SIZE_DEFAULT),
        Ok(size) => Ok(size.min(PAGE_SIZE_MAX)),
        Err(_) => Err(Invalid::new("must not be negative")),
    }
}

/// A page token that has the form of one; whether it is one of ours only [`PageTokens::decode`] can tell.
#[derive(Debug, Clone)]
pub struct PageToken(Option<Vec<u8>>);

impl PageToken {
    /// Reads the form of a token; empty stands for the first page.
    ///
    /// # Errors
    /// Refuses what no token looks like.
    pub fn parse(token: &str) -> Result<Self, Invalid> {
        if token.is_empty() {
            return Ok(Self(None));
        }
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| refused())?;
        if token.len() > TOKEN_LENGTH_MAX || bytes.len() <= TAG_LENGTH {
            return Err(refused());
        }
        Ok(Self(Some(bytes)))
    }
}

fn refused() -> Invalid {
    Invalid::new("must be the token of the page before, with the same other arguments")
}

/// Writes and reads page tokens. The key comes from the database, so that every replica reads every token.
pub struct PageTokens {
    key: [u8; 32],
}

impl PageTokens {
    /// Tokens under this key.
    #[must_use]
    pub const fn new(key: [u8; 32]) -> Self {
        Self { key }
    }

    /// The token that begins after `position` in the list that `context` names: its kind, its other arguments
    /// and the caller.
    #[must_use]
    pub fn encode(&self, position: &Position, context: &str) -> String {
        let payload = format!("{}:{}", position.sort, position.id);
        let mut token = self.tag(&payload, context).to_vec();
        token.extend_from_slice(payload.as_bytes());
        URL_SAFE_NO_PAD.encode(token)
    }

    /// Reads a token.
    ///
    /// # Errors
    /// Refuses whatever `encode` did not write for the same context.
    pub fn decode(&self, token: &PageToken, context: &str) -> Result<Option<Position>, Invalid> {
        let Some(token) = &token.0 else {
            return Ok(None);
        };
        let (tag, payload) = token.split_at_checked(TAG_LENGTH).ok_or_else(refused)?;
        let payload = str::from_utf8(payload).map_err(|_| refused())?;
        if !bool::from(subtle::ConstantTimeEq::ct_eq(tag, &self.tag(payload, context)[..])) {
            return Err(refused());
        }
        let (sort, id) = payload.split_once(':').ok_or_else(refused)?;
        let sort = sort.parse().map_err(|_| refused())?;
        Ok(Some(Position { sort, id: id.to_owned() }))
    }

    fn tag(&self, payload: &str, context: &str) -> [u8; TAG_LENGTH] {
        // HMAC fills a key shorter than its block of 64 bytes up with zeros; here this happens in the open.
        let mut block = [0; 64];
        for (to, from) in block.iter_mut().zip(self.key) {
            *to = from;
        }
        let mut mac = <Hmac<Sha256> as KeyInit>::new(&block.into());
        mac.update(&(payload.len() as u64).to_be_bytes());
        mac.update(payload.as_bytes());
        mac.update(context.as_bytes());
        let full: [u8; 32] = mac.finalize().into_bytes().into();
        let mut tag = [0; TAG_LENGTH];
        tag.copy_from_slice(full.first_chunk::<TAG_LENGTH>().unwrap_or(&[0; TAG_LENGTH]));
        tag
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_works_for_its_own_list_alone() {
        let tokens = PageTokens::new([1; 32]);
        let position = Position { sort: -5, id: "0198c7a4-5b7e-7c3a-9f00-2f1d6a8b9c0d".to_owned() };
        let token = tokens.encode(&position, "keys of a, caller x");
        let decode = |tokens: &PageTokens, token: &str, context: &str| {
            PageToken::parse(token).and_then(|token| tokens.decode(&token, context))
        };
        assert_eq!(decode(&tokens, &token, "keys of a, caller x"), Ok(Some(position)));
        assert!(decode(&tokens, &token, "keys of b, caller x").is_err());
        assert!(decode(&tokens, &token, "keys of a, caller y").is_err());
        assert!(decode(&PageTokens::new([2; 32]), &token, "keys of a, caller x").is_err());
        for cut in 1..token.len() {
            assert!(decode(&tokens, &token[..cut], "keys of a, caller x").is_err());
        }
        assert_eq!(decode(&tokens, "", "any"), Ok(None));
        assert!(decode(&tokens, "💥", "any").is_err());
    }

    #[test]
    fn a_page_of_large_rows_ends_early_and_goes_on_where_it_ended() {
        let page = Page { rows: vec![900_000usize; 5], next: None };
        let bounded = page.bounded(|bytes| *bytes, |_| Position { sort: 7, id: String::new() });
        assert_eq!(bounded.rows.len(), 2);
        assert!(bounded.next.is_some());
        let huge = Page { rows: vec![usize::MAX / 2], next: None }.bounded(|bytes| *bytes, |_| unreachable!());
        assert_eq!(huge.rows.len(), 1, "a page is never empty while there are rows");
    }

    #[test]
    fn page_sizes_are_capped_and_never_negative() {
        assert_eq!(parse_page_size(0), Ok(50));
        assert_eq!(parse_page_size(7), Ok(7));
        assert_eq!(parse_page_size(i32::MAX), Ok(1000));
        assert!(parse_page_size(-1).is_err());
    }
}
