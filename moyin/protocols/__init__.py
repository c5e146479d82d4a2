"""Wire formats. Each protocol translates to and from `moyin.domain.chat`, never to another one."""
