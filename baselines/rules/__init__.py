"""Row rules of the field: when a drafted token is kept, and what replaces it. One file per idea."""
