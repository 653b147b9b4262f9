"""Checks of chat requests before a language model reads them: control tokens, refused fields, answer length."""
