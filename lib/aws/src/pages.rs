//! Listings that come a page at a time.

/// How far a listing was read: each page says where the next one begins.
#[derive(Debug, Default)]
pub enum Pages<After> {
    /// Nothing was read yet.
    #[default]
    First,
    /// A page begins behind this.
    Next(After),
    /// The last page was read, or one could not be.
    End,
}

impl<After> Pages<After> {
    /// Reads the next page, `None` behind the last one. `read` is told where the page begins, and tells where the next one does.
    ///
    /// # Errors
    /// As `read`; the listing ends there.
    pub async fn next<T, E>(
        &mut self,
        read: impl AsyncFnOnce(Option<After>) -> Result<(T, Option<After>), E>,
    ) -> Result<Option<T>, E> {
        let after = match std::mem::replace(self, Self::End) {
            Self::First => None,
            Self::Next(after) => Some(after),
            Self::End => return Ok(None),
        };
        let (page, next) = read(after).await?;
        if let Some(next) = next {
            *self = Self::Next(next);
        }
        Ok(Some(page))
    }
}
