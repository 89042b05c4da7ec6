# Sourced with the path of an interpreter that has pip: tells uv where pip installs from and whom it trusts (a company's proxy,
# say), because uv does not read the settings of pip.
python=$1
of_pip() { "$python" -m pip config list | sed -n "s/^global\.$1='\(.*\)'$/\1/p"; }
index=${UV_DEFAULT_INDEX:-${PIP_INDEX_URL:-$(of_pip index-url)}}
[ -z "$index" ] || export UV_DEFAULT_INDEX=$index
certificates=${SSL_CERT_FILE:-${PIP_CERT:-$(of_pip cert)}}
[ -z "$certificates" ] || export SSL_CERT_FILE=$certificates
unset python
