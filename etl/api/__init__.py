"""The API: what is asked (`request`), what it answers (`answer`), when to ask again (`retry`), who asks (`client`)."""
