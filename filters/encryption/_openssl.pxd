# What the filter uses of OpenSSL 3's libcrypto. Every call may be made without the GIL.

from libc.stdint cimport uint64_t

cdef extern from "<openssl/evp.h>" nogil:
    ctypedef struct EVP_CIPHER:
        pass
    ctypedef struct EVP_CIPHER_CTX:
        pass
    ctypedef struct EVP_MAC:
        pass
    ctypedef struct EVP_MAC_CTX:
        pass
    ctypedef struct EVP_KDF:
        pass
    ctypedef struct EVP_KDF_CTX:
        pass
    int EVP_CTRL_AEAD_GET_TAG, EVP_CTRL_AEAD_SET_TAG
    EVP_CIPHER *EVP_CIPHER_fetch(void *context, const char *name, const char *properties)
    EVP_CIPHER_CTX *EVP_CIPHER_CTX_new()
    void EVP_CIPHER_CTX_free(EVP_CIPHER_CTX *ctx)
    int EVP_CIPHER_CTX_copy(EVP_CIPHER_CTX *out, const EVP_CIPHER_CTX *into)
    int EVP_CipherInit_ex2(EVP_CIPHER_CTX *ctx, const EVP_CIPHER *cipher, const unsigned char *key, const unsigned char *iv,
                           int encrypt, const void *params)
    int EVP_CipherUpdate(EVP_CIPHER_CTX *ctx, unsigned char *out, int *out_length, const unsigned char *data, int length)
    int EVP_CipherFinal_ex(EVP_CIPHER_CTX *ctx, unsigned char *out, int *out_length)
    int EVP_CIPHER_CTX_ctrl(EVP_CIPHER_CTX *ctx, int type, int argument, void *pointer)
    EVP_MAC *EVP_MAC_fetch(void *context, const char *name, const char *properties)
    EVP_MAC_CTX *EVP_MAC_CTX_new(EVP_MAC *mac)
    EVP_MAC_CTX *EVP_MAC_CTX_dup(const EVP_MAC_CTX *ctx)
    void EVP_MAC_CTX_free(EVP_MAC_CTX *ctx)
    int EVP_MAC_CTX_set_params(EVP_MAC_CTX *ctx, const OSSL_PARAM *params)
    int EVP_MAC_init(EVP_MAC_CTX *ctx, const unsigned char *key, size_t length, const OSSL_PARAM *params)
    int EVP_MAC_update(EVP_MAC_CTX *ctx, const unsigned char *data, size_t length)
    int EVP_MAC_final(EVP_MAC_CTX *ctx, unsigned char *out, size_t *out_length, size_t room)
    int EVP_Digest(const void *data, size_t length, unsigned char *digest, unsigned int *digest_length, const EVP_MD *type, void *engine)
    ctypedef struct EVP_MD:
        pass
    const EVP_MD *EVP_sha256()

cdef extern from "<openssl/kdf.h>" nogil:
    EVP_KDF *EVP_KDF_fetch(void *context, const char *name, const char *properties)
    EVP_KDF_CTX *EVP_KDF_CTX_new(EVP_KDF *kdf)
    void EVP_KDF_CTX_free(EVP_KDF_CTX *ctx)
    int EVP_KDF_derive(EVP_KDF_CTX *ctx, unsigned char *key, size_t length, const OSSL_PARAM *params)

cdef extern from "<openssl/params.h>" nogil:
    ctypedef struct OSSL_PARAM:
        pass
    OSSL_PARAM OSSL_PARAM_construct_utf8_string(const char *key, char *data, size_t length)
    OSSL_PARAM OSSL_PARAM_construct_octet_string(const char *key, void *data, size_t length)
    OSSL_PARAM OSSL_PARAM_construct_end()

cdef extern from "<openssl/rand.h>" nogil:
    int RAND_bytes(unsigned char *data, int length)

cdef extern from "<openssl/err.h>" nogil:
    void ERR_clear_error()

cdef extern from "<openssl/crypto.h>" nogil:
    void OPENSSL_cleanse(void *data, size_t length)
    int CRYPTO_memcmp(const void *a, const void *b, size_t length)
