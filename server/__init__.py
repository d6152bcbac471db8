"""codemill-lsp: completion, search by meaning and labels of functions in an editor, over the Language Server Protocol.

It speaks with one client over stdin and stdout, opens no connection, and runs bundles with the runtime's public
functions alone. The protocol itself is pygls' (extra `lsp`); what models do is the runtime's. Importing this package
imports neither.
"""
