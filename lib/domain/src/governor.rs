//! What a governor does with a tenant's signals: [`batch`] decides and writes, [`shift`] says what to do next.

pub mod batch;
pub mod shift;
