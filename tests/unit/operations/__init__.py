"""Operations and their parts."""
